"""Settings that every test shares."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch
import torch.distributed as dist
from torch._inductor.runtime.cache_dir_utils import cache_dir

from qfpass import code_digest
from qfpass.filters import key_precision

hypothesis.settings.register_profile(
    "qfpass", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI"))
)
hypothesis.settings.load_profile("qfpass")
# Workers share two cores' worth of threads.
torch.set_num_threads(max(1, 2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))))

# Sets the variable that names Inductor's folder, so that no test's QFPASS_CACHE moves it.
cache_dir()

# Inductor's caches don't look at the lowerings that are tested.
torch.compiler.config.cache_key_tag = code_digest.DIGEST  # type: ignore[attr-defined]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real weights first, the longest tests, so that no worker is left with them at the end."""
    items.sort(key=lambda item: item.get_closest_marker("weights") is None)


@pytest.fixture(scope="session", autouse=True)
def _nothing_measured_before(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What few bits cost a model is measured once a session, and not taken from the user's cache folder."""
    folder = tmp_path_factory.mktemp("precision")
    key_precision.cache_folder = lambda: folder


@pytest.fixture
def world(tmp_path: Path) -> Iterator[dist.ProcessGroup]:
    """A group of this process alone."""
    if not dist.is_gloo_available():
        pytest.skip("this torch has no gloo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()
