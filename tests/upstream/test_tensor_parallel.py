"""What transformers promises of models that it spreads over processes."""

from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES

from qfpass.capture.parallel_forwards import EMBEDDING, FORWARDS
from qfpass.upstream.process_groups import is_lost, timeouts_of
from qfpass.upstream.tensor_parallel import is_spread, style_of


@pytest.fixture
def mesh(world: dist.ProcessGroup) -> DeviceMesh:
    return init_device_mesh("cpu", (1,))


@pytest.mark.parametrize("name", sorted(FORWARDS))
def test_style_of_a_module_is_read_off_its_forward(name: str, mesh: DeviceMesh) -> None:
    module = nn.Embedding(4, 2) if name in EMBEDDING else nn.Linear(2, 2)
    assert style_of(module) is None
    ALL_PARALLEL_STYLES[name].install_forward(module, mesh)
    assert style_of(module) == name


def test_is_spread_of_weights_in_parts(mesh: DeviceMesh) -> None:
    module = nn.Linear(2, 2)
    assert not is_spread(module.weight)
    ALL_PARALLEL_STYLES["colwise"].shard_param(module, "weight", mesh)
    assert is_spread(module.weight)


def test_timeouts_of_groups_are_put_back(mesh: DeviceMesh) -> None:
    group = mesh.get_group()
    options = group._get_backend(torch.device("cpu")).options
    before = options._timeout
    with timeouts_of([group], timedelta(seconds=3)):
        assert options._timeout == timedelta(seconds=3)
    assert options._timeout == before != timedelta(seconds=3)


def test_is_lost_of_a_process_that_does_not_answer() -> None:
    lost = RuntimeError("[../gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:5017.")
    assert is_lost(lost) and not is_lost(RuntimeError("out of memory"))
    wrapped = ValueError("the graph fails")
    wrapped.__cause__ = lost
    assert is_lost(wrapped)
