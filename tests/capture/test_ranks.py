"""Two processes that run one model together decide alike, or both stop."""

import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from bounded import llama
from torch import nn

import qfpass
from qfpass.capture.ranks import ALONE, Ranks
from qfpass.errors import (
    CaptureError,
    FilterFileError,
    FilterMismatchError,
    NoAttentionError,
    QFPassError,
    RanksError,
)

RANKS = 2
IDS = torch.arange(1, 9)[None]


class Summed(nn.Module):
    """A linear layer of a part of the inputs, summed over all processes."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        from torch.distributed._functional_collectives import all_reduce

        return all_reduce(self.linear(hidden), "sum", dist.group.WORLD)


def part_of(linear: nn.Linear, dim: int) -> nn.Linear:
    weight = linear.weight.data.chunk(RANKS, dim)[dist.get_rank()].contiguous()
    part = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    part.weight = nn.Parameter(weight, requires_grad=False)
    return part


def sharded() -> nn.Module:
    """This process's heads, and its part of each feed-forward layer."""
    model: Any = llama()
    for layer in model.model.layers:
        for owner, names in ((layer.self_attn, "q k v"), (layer.mlp, "gate up")):
            for name in names.split():
                setattr(owner, f"{name}_proj", part_of(getattr(owner, f"{name}_proj"), 0))
        layer.self_attn.o_proj = Summed(part_of(layer.self_attn.o_proj, 1))
        layer.mlp.down_proj = Summed(part_of(layer.mlp.down_proj, 1))
    return model


def compiled(**settings: Any) -> Any:
    return qfpass.compile(sharded(), **{"budget": 16, "backend": "eager", **settings})


def raised(work: Callable[[], object]) -> tuple[str, str]:
    """The name and the text of the error of ours that `work` raises."""
    with pytest.raises(QFPassError) as error:
        work()
    return type(error.value).__name__, str(error.value)


def filters_of_one_alone(rank: int, cache: Path) -> None:
    """Found by one, made by both: else the sums of one's text would be the other's."""
    expected = llama()(IDS).logits
    for _ in range(2):
        model = compiled()
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-4, rtol=1e-4)
        assert list((cache / "filters").iterdir())
        if rank == 1:
            shutil.rmtree(cache / "filters")
        dist.barrier()


def settings_that_differ(rank: int, cache: Path) -> None:
    name, text = raised(lambda: compiled(budget=16 - rank, score="recency"))
    assert name == RanksError.__name__
    assert "budget is 16 on rank 0, 15 on rank 1" in text
    name, text = raised(lambda: compiled(score="recency", verify=rank == 0))
    assert "verify is True on rank 0, False on rank 1" in text


def an_error_of_one(rank: int, cache: Path) -> None:
    """What fails in one process stops the other too."""
    folder = cache / "none"
    name, _ = raised(lambda: compiled(filters=folder))
    assert name == FilterFileError.__name__  # in both
    if rank == 1:
        qfpass.calibrate(llama(), torch.arange(40)[None] % 50).save(folder)  # of the whole model: doesn't fit
    dist.barrier()
    name, _ = raised(lambda: compiled(filters=folder))
    assert name == (FilterFileError if rank == 0 else FilterMismatchError).__name__


def an_attention_that_one_does_not_find(rank: int, cache: Path) -> None:
    from importlib import import_module

    proven: Any = import_module("qfpass.proof.prove")
    find = proven.find_attentions

    def fail(*_: Any) -> None:
        raise NoAttentionError("none here")

    proven.find_attentions = fail if rank == 1 else find
    name, text = raised(lambda: compiled(score="recency"))
    proven.find_attentions = find
    assert name == (NoAttentionError if rank == 1 else RanksError).__name__
    assert "none here" in text and (rank == 1 or text.startswith("rank 1"))


def one_that_does_not_come(rank: int, cache: Path) -> None:
    """The other one's wait ends when it does. The last scenario."""
    if rank == 1:
        name, _ = raised(lambda: qfpass.compile(sharded().train(), budget=16, backend="eager"))
        assert name == CaptureError.__name__
        return
    name, text = raised(lambda: compiled(score="recency"))
    assert name == RanksError.__name__ and "must all compile it" in text


SCENARIOS = [
    settings_that_differ, an_error_of_one, an_attention_that_one_does_not_find, filters_of_one_alone,
    one_that_does_not_come,
]  # fmt: skip


def run(rank: int, folder: str) -> None:
    """One of the processes."""
    torch.set_num_threads(1)
    cache = Path(folder) / f"cache_{rank}"
    os.environ["QFPASS_CACHE"] = str(cache)
    store = f"file://{folder}/store"
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=60)
    )
    for scenario in SCENARIOS:
        scenario(rank, cache)


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_of_one_model_decide_alike(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(run, (str(tmp_path),), nprocs=RANKS)  # raises what a process raises


def test_a_process_alone_agrees_with_itself() -> None:
    ALONE.require_same({"budget": 3})
    assert ALONE.all(True) and not Ranks().all(False)
    assert ALONE.together(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        ALONE.together(lambda: 1 // 0)
