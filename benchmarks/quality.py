"""How well trained filters keep text, on real weights: trained on some essays, measured on others.

`python benchmarks/quality.py OUT [train] [needle] [ruler] [perplexity]`: filters go into OUT/filters, results
and plots into OUT. All of it takes hours on a processor. Needles and perplexity are asked of stores in eight
bits, whose ratio is of bytes; RULER of float32 stores, beside the baselines that have no other.
"""

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from assets import essays_folder, weights_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

import qfpass
from qfpass import evaluate
from qfpass.evaluate.baselines import BASELINES
from qfpass.filters import load_filters

HELD_OUT = ("avg", "gh", "love", "philosophy", "popular", "siliconvalley", "wisdom", "worked")
SCORES = ("trained", "published", "recency")
SEED = 0


def texts(held_out: bool) -> list[str]:
    """The essays that are held out, or the others."""
    paths = sorted(essays_folder().glob("*.txt"))
    return [path.read_text() for path in paths if (path.stem in HELD_OUT) is held_out]


def held_out_text() -> str:
    """The essays that are held out, joined."""
    return "\n\n".join(texts(held_out=True))


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


def needle(out: Path, tokenizer: Any) -> None:
    """Fifty needles at each of two lengths."""
    methods = [evaluate.Method(s, ratio=r, store_dtype=torch.int8) for r in (8.0, 32.0) for s in SCORES]

    def run(each: Any) -> Any:
        return evaluate.needle(
            each, tokenizer, held_out_text(), lengths=(1024, 2048), depths=10, needles=5, seed=SEED, batch=5
        )

    record("needle", methods, run, out, {"lengths": [1024, 2048], "depths": 10, "needles": 5})


def ruler(out: Path, tokenizer: Any) -> None:
    """The eleven synthetic tasks at 2,048 tokens, ten samples of each."""
    scores = (*SCORES, *BASELINES, "knorm", "random")
    methods = [evaluate.Method(score, ratio=ratio) for ratio in (4.0, 8.0) for score in scores]

    def run(each: Any) -> Any:
        return evaluate.ruler(
            each, tokenizer, held_out_text(), length=2048, tasks=tuple(evaluate.TASKS), samples=10, seed=SEED
        )

    record("ruler", methods, run, out, {"length": 2048, "samples": 10})


def perplexity(out: Path, tokenizer: Any) -> None:
    """Text streamed token by token at an eighth of the bytes, and at an eighth of the slots."""
    rows = evaluate.token_rows(tokenizer, held_out_text(), tokens=2048, rows=8, seed=SEED)
    stores = (torch.int8, None)
    methods = [evaluate.Method(s, ratio=8, store_dtype=d) for d in stores for s in SCORES]

    def run(each: Any) -> Any:
        return evaluate.perplexity(each, rows, first=1024, batch=4)

    record("perplexity", methods, run, out, {"tokens": 2048, "texts": 8, "first": 1024}, backend="inductor")


def record(
    kind: str, methods: list[evaluate.Method], run: Any, out: Path, settings: dict[str, Any], **options: Any
) -> None:
    """Run every method beside the uncompressed model; table, JSON and plot."""
    filters = [load_filters(out / "filters")]
    models = evaluate.with_methods(model_of(torch.float32), methods, options, filters=filters)
    settings = {"held out": list(HELD_OUT), "seed": SEED, **settings}
    evaluation = evaluate.compare(kind, weights_folder().name, models, run, settings)
    print(evaluation)
    evaluation.save(out)
    evaluate.plot(evaluation, out)


STEPS = {"train": train, "needle": needle, "ruler": ruler, "perplexity": perplexity}


def main() -> None:
    """See the module."""
    out, *names = sys.argv[1:]
    folder, tokenizer = Path(out), AutoTokenizer.from_pretrained(weights_folder())
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or STEPS:
        STEPS[name](folder, tokenizer)


if __name__ == "__main__":
    main()
