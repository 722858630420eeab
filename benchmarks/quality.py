"""How well trained filters keep text, on real weights: trained on some essays, measured on others.

`python benchmarks/quality.py OUT [STEP ...]`, with steps train, perplexity-2048, perplexity-8192, needle,
slots, far, ruler-4x and ruler-8x: filters go into OUT/filters, results and plots into OUT. All of it takes
hours. Ratios are of bytes, so that a store in eight bits has 3.6 times the slots; baselines are in float32.
"""

import sys
from collections.abc import Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from assets import essays_folder, weights_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

import qfpass
from qfpass.filters import load_filters
from qfpass.tools import evaluate
from qfpass.tools.evaluate import Method
from qfpass.tools.evaluate.baselines import BASELINES

HELD_OUT = ("avg", "gh", "love", "philosophy", "popular", "siliconvalley", "wisdom", "worked")
DEVELOPMENT = ("gap", "startuplessons")  # neither trained on nor reported: for choosing settings
LENGTHS = (1024, 1024, 1024, 2048, 4096, 7680)  # of the lessons, in tokens
RULER_SAMPLES = 2  # of a task
SEED = 0
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def essays(names: Collection[str]) -> str:
    """Essays, joined."""
    return "\n\n".join((essays_folder() / f"{name}.txt").read_text() for name in names)


def training_text() -> str:
    """The essays that are neither held out nor for development."""
    names = {path.stem for path in essays_folder().glob("*.txt")}
    return essays(sorted(names - {*HELD_OUT, *DEVELOPMENT}))


def model_of(dtype: torch.dtype) -> Any:
    return AutoModelForCausalLM.from_pretrained(weights_folder(), dtype=dtype).eval().to(DEVICE)


def train(out: Path, tokenizer: Any) -> None:
    """Filters for 8x."""
    filters = qfpass.train(
        model_of(torch.bfloat16), tokenizer, [training_text()],
        ratio=8, lessons=240, lengths=LENGTHS, steps=300, batch=4, seed=SEED,
        description=f"essays without {', '.join((*HELD_OUT, *DEVELOPMENT))}",
    )  # fmt: skip
    filters.save(out / "filters")
    print(filters.source)


def needle(out: Path, tokenizer: Any) -> None:
    """Fifty needles at each of two lengths."""
    methods = [in_bytes(8), in_bytes(32)]
    needles(methods, out / "needle", tokenizer, lengths=(1024, 2048), depths=10, needles=5)


def slots(out: Path, tokenizer: Any) -> None:
    """Needles at the ratios of slots, in stores of the model's own dtype, and at 64x in bytes."""
    methods = [Method("trained", ratio=8), Method("trained", ratio=32), in_bytes(64)]
    needles(methods, out / "slots", tokenizer, lengths=(1024, 2048), depths=10, needles=2)


def far(out: Path, tokenizer: Any) -> None:
    """Five needles in all of the model's context, and so the question behind it."""
    methods = [in_bytes(8), in_bytes(32), in_bytes(64)]
    grid = {"lengths": (8192,), "depths": 5, "needles": 1}
    needles(methods, out / "far", tokenizer, options={"context_length": 8192 + 256}, **grid)


def in_bytes(ratio: float) -> Method:
    """The trained score in eight bits: more slots in the bytes of the ratio."""
    return Method("trained", ratio=ratio, store_dtype=torch.int8)


def needles(
    methods: list[Method], out: Path, tokenizer: Any, options: dict[str, Any] | None = None, **grid: Any
) -> None:
    def run(each: Any) -> Any:
        return evaluate.needle(each, tokenizer, essays(HELD_OUT), seed=SEED, batch=5, **grid)

    record("needle", methods, run, out, grid, **(options or {}))


def ruler(ratio: float, more: list[Method], out: Path, tokenizer: Any) -> None:
    """The eleven synthetic tasks at 2,048 tokens."""
    scores = ("trained", *BASELINES, "published", "recency", "knorm", "random")
    methods = [*(Method(score, ratio=ratio) for score in scores), *more]
    settings = {"length": 2048, "tasks": tuple(evaluate.TASKS), "samples": RULER_SAMPLES}

    def run(each: Any) -> Any:
        return evaluate.ruler(each, tokenizer, essays(HELD_OUT), seed=SEED, batch=4, **settings)

    record("ruler", methods, run, out / f"ruler-{ratio:g}x", settings)


def perplexity(tokens: int, texts: int, more: list[Method], out: Path, tokenizer: Any) -> None:
    """Texts streamed token by token at an eighth of the slots."""
    rows = evaluate.token_rows(tokenizer, essays(HELD_OUT), tokens=tokens, rows=texts, seed=SEED)
    methods = [*(Method(score, ratio=8) for score in ("trained", "recency", "published")), *more]
    first = tokens // 8

    def run(each: Any) -> Any:
        return evaluate.perplexity(each, rows, first=first, batch=texts)

    settings = {"tokens": tokens, "texts": texts, "first": first}
    record("perplexity", methods, run, out / f"perplexity-{tokens}", settings, backend="inductor")


def record(
    kind: str, methods: list[Method], run: Any, out: Path, settings: dict[str, Any], **options: Any
) -> None:
    """Run every method beside the uncompressed model; table, JSON and plot."""
    out.mkdir(parents=True, exist_ok=True)
    filters = [load_filters(out.parent / "filters")]
    models = evaluate.with_methods(model_of(torch.float32), methods, options, filters=filters)
    settings = {"held out": list(HELD_OUT), "seed": SEED, **settings}
    evaluation = evaluate.compare(kind, weights_folder().name, models, run, settings)
    print(evaluation)
    evaluation.save(out)
    evaluate.plot(evaluation, out)


STEPS = {
    "train": train,
    "perplexity-2048": partial(perplexity, 2048, 4, [in_bytes(8)]),
    "perplexity-8192": partial(perplexity, 8192, 6, [in_bytes(8)]),
    "needle": needle,
    "slots": slots,
    "far": far,
    "ruler-4x": partial(ruler, 4, []),
    "ruler-8x": partial(ruler, 8, [in_bytes(8)]),
}


def main() -> None:
    """See the module."""
    out, *names = sys.argv[1:]
    folder, tokenizer = Path(out), AutoTokenizer.from_pretrained(weights_folder())
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or STEPS:
        STEPS[name](folder, tokenizer)


if __name__ == "__main__":
    main()
