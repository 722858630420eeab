"""What Inductor promises of the folder in which it keeps what it compiles."""

from pathlib import Path

import pytest
import torch
from torch._inductor import config

from qfpass.upstream.inductor_cache import cache_folder


def test_cache_folder_is_the_one_that_inductor_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert cache_folder() == tmp_path


def test_cache_folder_is_none_where_nothing_is_kept() -> None:
    with config.patch(force_disable_caches=True):
        assert cache_folder() is None
    with config.patch(fx_graph_cache=False):
        assert cache_folder() is None
    with torch.compiler.config.patch(force_disable_caches=True):  # type: ignore[attr-defined]
        assert cache_folder() is None
