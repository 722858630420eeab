"""A step with torchao's weights beside bfloat16's and compact_weights': `python benchmarks/quantised.py OUT`.

SmolLM2-135M on a processor, an eighth of its cache: each variant compiled as a user does it, a step on full
stores timed in turns, and the seconds from compile to the first step. OUT gets a JSON record.
"""

import copy
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_
from transformers import AutoModelForCausalLM

import qfpass
from qfpass.tools.bench.timing import take_turns

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from assets import weights_folder

RATIO, PROMPT, ROUNDS = 8.0, 2000, 60


def variants() -> dict[str, tuple[Any, dict[str, Any]]]:
    """By name: a model, and what it is compiled with beside the ratio."""
    whole = AutoModelForCausalLM.from_pretrained(weights_folder(), dtype=torch.float32).eval()
    half = copy.deepcopy(whole).to(torch.bfloat16)
    made: dict[str, tuple[Any, dict[str, Any]]] = {
        "float32": (whole, {}),
        "float32, compact_weights": (whole, {"compact_weights": True}),
        "bfloat16": (half, {}),
    }
    for name, config in {"int8": Int8WeightOnlyConfig, "float8": Float8WeightOnlyConfig}.items():
        for dtype, model in (("float32", whole), ("bfloat16", half)):
            quantised = copy.deepcopy(model)
            quantize_(quantised, config())
            made[f"{dtype}, torchao {name}"] = (quantised, {})
    return made


def step_of(compiled: Any) -> Callable[[], object]:
    """A step on full stores."""
    session, ids = compiled.session(), torch.arange(100, 100 + PROMPT)[None]
    compiled(input_ids=ids, past_key_values=session, logits_to_keep=1)
    return lambda: compiled(input_ids=ids[:, :1], past_key_values=session)


@torch.no_grad()
def main(out: Path) -> None:
    """Compile the variants, time them, and write the record."""
    steps, colds = dict[str, Callable[[], object]](), dict[str, float]()
    for name, (model, settings) in variants().items():
        start = time.perf_counter()
        steps[name] = step_of(
            qfpass.compile(model, ratio=RATIO, score="recency", store_dtype=None, **settings)
        )
        steps[name]()
        colds[name] = time.perf_counter() - start
        print(f"{name}: first step after {colds[name]:.1f} s", flush=True)
    ready = {name: (lambda step=step: step) for name, step in steps.items()}
    timings = take_turns(ready, rounds=ROUNDS, seconds=300, device=torch.device("cpu"))
    half = timings["bfloat16"].median
    rows = [
        {"weights": name, "step_ms": 1000 * t.median, "of_bfloat16": t.median / half, "cold_s": colds[name]}
        for name, t in timings.items()
    ]
    record = {"torch": torch.__version__, "threads": torch.get_num_threads(), "ratio": RATIO, "rows": rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
    for row in rows:
        print(f"{row['weights']:28} {row['step_ms']:7.2f} ms  {row['of_bfloat16']:.2f}x bfloat16's")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
