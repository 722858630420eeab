"""Real weights split over processes: the tokens that one process writes, by eager code and by Inductor."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
    # 128 slots, which the prompt fills.
    "ratio=8, eager": {"ratio": 8, "store_dtype": None, "backend": "eager"},
    "ratio=8, inductor": {"ratio": 8, "store_dtype": None},
    "ratio=8, few bits, inductor": {"ratio": 8},  # some 590
}
# Processes sum in another order than one does. Where the last bit of a sum moves a code of few bits, logits
# differ by more than rounding, and of two tokens that are nearly as likely each may come first.
FEW_BITS, MOST_APART = "ratio=8, few bits, inductor", 0.5


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
            theirs = written(alone, ids)
            if name == FEW_BITS and mine.tokens != theirs.tokens:
                require_nearly_as_likely(mine, theirs)
            else:
                assert mine.tokens == theirs.tokens, name
            if alone is not whole:
                assert dist.get_world_size() * report.nbytes == qfpass.report(alone).nbytes
            print(name, "alike", flush=True)
        dist.barrier()


class Written(NamedTuple):
    """Tokens, and the logits [V] by which each was chosen."""

    tokens: list[int]
    logits: list[torch.Tensor]


def written(model: Any, ids: torch.Tensor) -> Written:
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    given = model.generate(ids, output_logits=True, return_dict_in_generate=True, **settings)
    return Written(given.sequences[0, PROMPT:].tolist(), [logits[0] for logits in given.logits])


def require_nearly_as_likely(mine: Written, theirs: Written) -> None:
    """Where the tokens part, both find either likeliest but for what their logits differ by."""
    at = next(i for i, pair in enumerate(zip(mine.tokens, theirs.tokens, strict=True)) if len(set(pair)) > 1)
    pairs = list(zip(mine.logits, theirs.logits, strict=True))[: at + 1]
    apart = max(float((own - other).abs().max()) for own, other in pairs)
    print("the first", at, "tokens alike, logits at most", apart, "apart", flush=True)
    assert apart < MOST_APART
    for logits in pairs[-1]:
        assert logits.max() - logits[[mine.tokens[at], theirs.tokens[at]]].min() <= 2 * apart


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
