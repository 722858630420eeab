"""What can't be compiled is refused by name, before anything is traced."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from decoders import decoder, places, text
from torch import nn

import qfpass
from qfpass.capture.export import capture
from qfpass.errors import CaptureError


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Any]:
    """This process alone, as a device mesh."""
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.fixture(autouse=True)
def nothing_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    def traced(*_: Any, **__: Any) -> None:
        raise AssertionError("torch.export was called")

    monkeypatch.setattr(torch.export, "export", traced)


def refused(model: Any, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        qfpass.compile(model, ratio=1, context_length=64, backend="eager")


def on_meta() -> nn.Module:
    with torch.device("meta"):
        return decoder()


def a_buffer_on_meta() -> nn.Module:
    model = decoder()
    model.layers[0].register_buffer("table", torch.empty(3, device="meta"))
    return model


def in_inference_mode() -> nn.Module:
    with torch.inference_mode():
        return decoder()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (on_meta, "such as .*weight on the meta device: load them first"),
        (a_buffer_on_meta, r"such as layers\.0\.table on the meta device"),
        (in_inference_mode, r"such as .*weight, and torch .*torch\.no_grad\(\) instead"),
        (lambda: nn.DataParallel(decoder()), "^DataParallel .*compile the model inside it"),
        (lambda: nn.Sequential(nn.DataParallel(decoder())), "^DataParallel "),
        (lambda: decoder().train(), r"training mode: call model\.eval\(\)"),
        (lambda: "a name", "a model is needed, not its name"),
        (lambda: decoder, "not function"),
    ],
)
def test_what_holds_no_numbers_or_is_no_model(make: Callable[[], Any], message: str) -> None:
    refused(make(), message)


def test_programs_made_from_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = decoder(), text(8)
    monkeypatch.undo()
    program = torch.export.export(model, (ids, places(ids)))
    scripted = torch.jit.trace(model, (ids, places(ids)))
    for made in (program, program.module(), torch.export.unflatten(program), scripted):
        refused(made, "is a program that torch.export or TorchScript made from a model: compile that model")


def test_weights_that_are_spread_over_processes(mesh: Any) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.tensor import Shard, distribute_tensor

    model = decoder()
    model.head.weight = nn.Parameter(distribute_tensor(model.head.weight.data, mesh, [Shard(0)]))
    refused(model, r"such as head\.weight, a DTensor")
    refused(fully_shard(decoder(), mesh=mesh), "a DTensor")
    refused(nn.parallel.DistributedDataParallel(decoder()), "^DistributedDataParallel ")
    refused(FullyShardedDataParallel(decoder(), device_id=torch.device("cpu")), "^FullyShardedDataParallel ")


class Coded(nn.Parameter):
    """A weight of eight bits as libraries of kernels have them: its scale is an attribute."""

    scale: torch.Tensor

    def plain(self) -> torch.Tensor:
        return self.data.float() * self.scale


class CodedHead(nn.Module):
    """A linear layer of such a weight."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.data.abs().max() / 127
        self.weight = Coded((linear.weight.data / scale).round().to(torch.int8), requires_grad=False)
        self.weight.scale = scale

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.weight.plain().T


def test_weights_that_hold_more_than_a_trace_sees_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    model: Any = decoder()
    model.head = CodedHead(model.head)
    ids = text(8)
    before = model(ids, places(ids))
    with pytest.raises(CaptureError, match=r"test_suitable\.Coded \(head\.weight\)\. Load it unquantised"):
        capture(model)
    assert torch.equal(before, model(ids, places(ids)))
