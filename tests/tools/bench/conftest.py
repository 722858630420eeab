"""A tiny model in a folder, as `qfpass bench` takes it."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import FAMILIES
from torch import nn

from qfpass.tools.bench.setup import Setup


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model() -> nn.Module:
    return FAMILIES["llama"]()


@pytest.fixture(scope="session")
def setup(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Setup:
    folder = tmp_path_factory.mktemp("tiny")
    model.save_pretrained(folder)
    return Setup(str(folder), score="recency", backend="eager")
