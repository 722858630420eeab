"""Facts and RULER without anybody's data: `python benchmarks/without_data.py MODEL OUT [STEP ...]`.

MODEL is smollm2 or qwen; steps are needle and ruler. Beside the full cache: a window of the newest tokens,
what `compile` does by itself, and the filters that `qfpass tune` left in the cache, all in bfloat16 and in
the same bytes. The text is read and compressed before the question is asked.
"""

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from quality import HELD_OUT, SEED, essays
from transformers import AutoModelForCausalLM, AutoTokenizer

from qfpass.tools import evaluate
from qfpass.tools.evaluate import Method

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from assets import qwen_folder, weights_folder

STEPS = ("needle", "ruler")
RULER_LENGTH = 4096


STORES = {"trained": "int8-int4", "published": "int8-int4", "recency": None}  # by score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=["smollm2", "qwen"])
    parser.add_argument("out", type=Path)
    parser.add_argument("steps", nargs="*", help=", ".join(STEPS))
    parser.add_argument("--needles", type=int, default=5, help="at each of ten depths and two lengths")
    parser.add_argument("--samples", type=int, default=5, help="of each of RULER's eleven tasks")
    parser.add_argument(
        "--ratios", type=float, nargs="+", help="default: 8 and 32 for facts, 4 and 8 for RULER"
    )
    parser.add_argument("--scores", nargs="+", default=list(STORES), help=", ".join(STORES))
    asked = parser.parse_args()
    folder = weights_folder() if asked.model == "smollm2" else qwen_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    tokenizer, text = AutoTokenizer.from_pretrained(folder), essays(HELD_OUT)
    common = {"seed": SEED, "progress": True}
    needle = {"lengths": (1024, 2048), "depths": 10, "needles": asked.needles}
    ruler = {"length": RULER_LENGTH, "tasks": tuple(evaluate.TASKS), "samples": asked.samples}
    kinds: dict[str, tuple[tuple[float, ...], Any, dict[str, Any]]] = {
        "needle": ((8, 32), partial(evaluate.needle, batch=5, **common, **needle), needle),
        "ruler": ((4, 8), partial(evaluate.ruler, batch=4, **common, **ruler), ruler),
    }
    for step in asked.steps or STEPS:
        ratios, measure, settings = kinds[step]
        methods = [
            Method(score, ratio=ratio, store_dtype=STORES[score])
            for ratio in asked.ratios or ratios
            for score in asked.scores
        ]
        models = evaluate.with_methods(model, methods)
        evaluation = evaluate.compare(
            step, folder.name, models, lambda each, measure=measure: measure(each, tokenizer, text),
            {"texts": list(HELD_OUT), "dtype": "bfloat16", "seed": SEED, **settings},
        )  # fmt: skip
        print(evaluation)
        evaluation.save(asked.out)


if __name__ == "__main__":
    main()
