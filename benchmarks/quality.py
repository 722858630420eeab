"""How well trained filters keep text, on real weights: trained on some essays, measured on others.

`python benchmarks/quality.py OUT [train] [perplexity] [needle]`: filters go into OUT/filters, results and
plots into OUT. All three by default, which takes long on a processor.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from assets import essays_folder, weights_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

import qfpass
from qfpass import evaluate
from qfpass.filters import load_filters

HELD_OUT = ("avg", "gh", "love", "philosophy", "popular", "siliconvalley", "wisdom", "worked")
SCORES = ("trained", "published", "recency")
SEED = 0


def texts(held_out: bool) -> list[str]:
    """The essays that are held out, or the others."""
    paths = sorted(essays_folder().glob("*.txt"))
    return [path.read_text() for path in paths if (path.stem in HELD_OUT) is held_out]


def model_of(dtype: torch.dtype) -> Any:
    return AutoModelForCausalLM.from_pretrained(weights_folder(), dtype=dtype).eval()


def train(out: Path, tokenizer: Any) -> None:
    """Filters for 8x, from the essays that aren't held out."""
    filters = qfpass.train(
        model_of(torch.bfloat16), tokenizer, texts(held_out=False), ratio=8, seed=SEED,
        description=f"essays without {', '.join(HELD_OUT)}",
    )  # fmt: skip
    filters.save(out / "filters")
    print(filters.source)


def measure(out: Path, tokenizer: Any, names: Sequence[str]) -> None:
    """Every score at the same slots, sinks and newest tokens."""
    model, filters = model_of(torch.float32), [load_filters(out / "filters")]
    text = "\n\n".join(texts(held_out=True))
    settings = {"held out": list(HELD_OUT), "seed": SEED}
    if "perplexity" in names:
        methods = [evaluate.Method(score, budget=256, recent=32) for score in SCORES]
        rows = evaluate.token_rows(tokenizer, text, tokens=2048, rows=8, seed=SEED)
        record(
            "perplexity", model, methods, filters, settings | {"tokens": 2048, "texts": 8, "first": 512}, out,
            lambda each: evaluate.perplexity(each, rows, first=512, batch=4),
        )  # fmt: skip
    if "needle" in names:
        methods = [
            evaluate.Method(score, ratio=ratio, recent=int(1024 / ratio / 8))
            for ratio in (8.0, 32.0)
            for score in SCORES
        ]
        record(
            "needle", model, methods, filters, settings | {"length": 1024, "depths": 10, "needles": 5}, out,
            lambda each: evaluate.needle(
                each, tokenizer, text, lengths=(1024,), depths=10, needles=5, seed=SEED, batch=5
            ),
        )  # fmt: skip


def record(
    kind: str, model: Any, methods: list[evaluate.Method], filters: list[Any], settings: dict[str, Any],
    out: Path, run: Any,
) -> None:  # fmt: skip
    """Run every method beside the uncompressed model; table, JSON and plot."""
    models = evaluate.with_methods(model, methods, filters=filters)
    evaluation = evaluate.compare(kind, weights_folder().name, models, run, settings)
    print(evaluation)
    evaluation.save(out)
    evaluate.plot(evaluation, out)


def main() -> None:
    """See the module."""
    out, *names = sys.argv[1:]
    names = names or ["train", "perplexity", "needle"]
    folder, tokenizer = Path(out), AutoTokenizer.from_pretrained(weights_folder())
    folder.mkdir(parents=True, exist_ok=True)
    if "train" in names:
        train(folder, tokenizer)
    if {"perplexity", "needle"} & set(names):
        measure(folder, tokenizer, names)


if __name__ == "__main__":
    main()
