"""Real weights split over processes: the tokens that one process writes, by eager code and by Inductor."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from assets import essays_text, qwen_folder, weights_folder
from transformers import AutoModelForCausalLM, AutoTokenizer
from two_processes import in_two_processes, needs_gloo

import qfpass

pytestmark = [pytest.mark.weights, pytest.mark.slow, needs_gloo]
PROMPT, NEW_TOKENS = 700, 200
SETTINGS: dict[str, dict[str, Any]] = {
    "ratio=1, eager": {"ratio": 1, "backend": "eager"},
    "ratio=8, eager": {"ratio": 8, "backend": "eager"},  # some 590 slots: the prompt fills them
    "ratio=8, inductor": {"ratio": 8},
}


def same_tokens(rank: int, folder: Path, weights: Path, text: str, how: dict[str, Any]) -> None:
    """`how` transformers splits it; each process has as many bytes of keys and values."""
    ids = AutoTokenizer.from_pretrained(weights)(text, return_tensors="pt").input_ids
    ids = ids[:, :PROMPT]
    split: Any = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32, **how).eval()
    for name, settings in SETTINGS.items():
        model = qfpass.compile(split, context_length=1024, **settings)
        mine = written(model, ids)
        report = qfpass.report(model)
        if rank == 0:  # which has the filters by now
            whole: Any = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).eval()
            alone = (
                whole if settings["ratio"] == 1 else qfpass.compile(whole, context_length=1024, **settings)
            )
            assert mine == written(alone, ids), name
            if alone is not whole:
                assert dist.get_world_size() * report.nbytes == qfpass.report(alone).nbytes
            print(name, "alike", flush=True)
        dist.barrier()


def written(model: Any, ids: torch.Tensor) -> list[int]:
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    tokens: list[int] = model.generate(ids, **settings)[0, PROMPT:].tolist()
    return tokens


def test_smollm2_in_three_processes(tmp_path: Path) -> None:
    """It has nine query heads and three of keys."""
    run(weights_folder(), tmp_path, 3, tp_plan="auto")


@pytest.mark.qwen
def test_qwen_in_two_processes(tmp_path: Path) -> None:
    run(qwen_folder(), tmp_path, 2, tp_plan="auto")


def run(weights: Path, folder: Path, ranks: int, **how: Any) -> None:
    if not weights.exists():
        pytest.skip("run `make weights`, or `make test-qwen`, which fetch the weights")
    scenario: Callable[[int, Path], None] = partial(
        same_tokens, weights=weights, text=essays_text()[:20000], how=how
    )
    in_two_processes([scenario], folder, ranks, seconds=1200)
