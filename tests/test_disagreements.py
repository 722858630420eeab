"""Processes that compile one split model and disagree: each raises an error within seconds."""

import os
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import torch.distributed as dist
from test_pipeline_parallel import split_and_whole as split_by_layers
from test_tensor_parallel import split_and_whole as split_by_heads
from two_processes import RANKS, in_two_processes, needs_gloo

import qfpass
from qfpass.capture import ranks
from qfpass.errors import QFPassError, RanksError

SplitAndWhole = Callable[[str, int, Path], tuple[Any, Any]]
PATIENCE = timedelta(seconds=6)  # of the test's processes, which do little
SECONDS, SEEDS = 30, 20
# Where one process fails: a module of the package and a function in it, called by name, before or between
# collectives.
PHASES = (
    "pipeline.refuse_unsuitable", "proof.prove.capture", "proof.prove.find_attentions",
    "proof.verify.require_repeatable", "proof.verify.original_logits", "proof.verify.refuse_by_text_length",
    "proof.prove.verify_lengths", "proof.prove.as_part_of_whole", "plan.load_given_filters",
    "choose_store.read_smoothing", "choose_store.predictions", "choose_filters.calibrate_captured",
    "pipeline.make_sites", "pipeline.rewrite", "pipeline.outline",
)  # fmt: skip
FAILURES = (RuntimeError("out of memory"), KeyboardInterrupt(), ValueError("of the model's own"))
SETTINGS: dict[str, tuple[Any, Any]] = {
    "budget": (16, 17), "score": ("recency", "knorm"), "chunk": (8, 9), "verify": (True, False),
    "context_length": (64, 65), "store_dtype": (None, torch.int8), "recent": (3, 4), "sinks": (2, 4),
    "backend": ("eager", "aot_eager"), "ratio": (2, -1),
}  # fmt: skip


def fails_in(phase: str, failure: BaseException) -> Callable[[], None]:
    """Make one function of this process raise; the returned function puts it back."""
    path, _, name = phase.rpartition(".")
    module: Any = import_module(f"qfpass.{path}")
    own = getattr(module, name)

    def fail(*_: Any, **__: Any) -> None:
        raise failure

    setattr(module, name, fail)
    return lambda: setattr(module, name, own)


def one_disagreement(rank: int, folder: Path, seed: int, split_and_whole: SplitAndWhole) -> None:
    """A seeded one; the model, the process group and the cache are new."""
    os.environ["QFPASS_CACHE"] = f"{folder}/cache_{rank}_{seed}"
    chance = Random(seed)
    who, kind = chance.randrange(RANKS), chance.choice(("setting", "phase", "phase", "filters"))
    settings: dict[str, Any] = {"ratio": 4, "context_length": 256, "backend": "eager"}
    put_back: Callable[[], None] = lambda: None  # noqa: E731
    split, whole = split_and_whole("llama", rank, folder)
    if kind == "setting":
        name = chance.choice(sorted(SETTINGS))
        settings[name] = SETTINGS[name][rank == who]
        if name == "budget":
            del settings["ratio"]
    elif kind == "filters":
        text = torch.arange(40 + (rank == who))[None] % 50
        settings["filters"] = qfpass.calibrate(whole, text)
    elif rank == who:
        put_back = fails_in(chance.choice(PHASES), chance.choice(FAILURES))
    dist.barrier()
    start = time.monotonic()
    with pytest.raises((QFPassError, *map(type, FAILURES))) as error:
        qfpass.compile(split, **settings)
    put_back()
    assert time.monotonic() - start < SECONDS, seed
    if kind == "phase" and rank != who:
        assert isinstance(error.value, RanksError), (seed, error.value)


def disagreements(rank: int, folder: Path, split_and_whole: SplitAndWhole) -> None:
    ranks.PATIENCE = PATIENCE
    for seed in range(SEEDS):
        one_disagreement(rank, folder, seed, split_and_whole)
        dist.destroy_process_group()  # a collective that one has made and the other hasn't is still in it
        store: Any = f"file://{folder}/store_{seed}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)


@needs_gloo
@pytest.mark.slow
@pytest.mark.parametrize("split", [split_by_heads, split_by_layers], ids=["heads", "layers"])
def test_processes_that_disagree_all_stop(split: SplitAndWhole, tmp_path: Path) -> None:
    in_two_processes([partial(disagreements, split_and_whole=split)], tmp_path, seconds=600)
