"""A step with torchao's weights beside bfloat16's: `python benchmarks/quantised.py OUT`.

SmolLM2-135M on a processor, an eighth of its cache: each variant compiled as a user does it, steps on full
stores timed in turns of five in a row, as decoding makes them, and the seconds from compile to the first
step. OUT gets a JSON record. Names after OUT choose among the variants. A cold start is one of a process with
one variant and a QFPASS_CACHE that holds nothing but `assets`.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    PerGroup,
    quantize_,
)
from transformers import AutoModelForCausalLM

import qfpass
from qfpass.tools.bench.timing import take_turns

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from assets import weights_folder

RATIO, PROMPT, ROUNDS = 8.0, 4096, 60  # more tokens than slots, also in few bits
IN_A_ROW = 5  # steps of a round
DTYPES = (torch.float32, torch.bfloat16)
CONFIGS: dict[str, Any] = {
    "int8": Int8WeightOnlyConfig(),
    "float8": Float8WeightOnlyConfig(),
    "int8, groups of 32": IntxWeightOnlyConfig(torch.int8, granularity=PerGroup(32)),
    "int4, groups of 32": IntxWeightOnlyConfig(torch.int4, granularity=PerGroup(32)),
    "int4, groups of 64": IntxWeightOnlyConfig(torch.int4, granularity=PerGroup(64)),
}


def variants() -> dict[str, Callable[[], Any]]:
    """By name, what makes a model."""

    def made(dtype: torch.dtype, config: Any = None) -> Any:
        model = AutoModelForCausalLM.from_pretrained(weights_folder(), dtype=dtype).eval()
        if config is not None:
            quantize_(model, config)
        return model

    plain = {f"{dtype}".removeprefix("torch."): partial(made, dtype) for dtype in DTYPES}
    return plain | {
        f"{name}, torchao {config}": partial(make, CONFIGS[config])
        for config in CONFIGS
        for name, make in plain.items()
    }


def steps_of(compiled: Any) -> Callable[[], object]:
    """A round's steps, on full stores."""
    session, ids = compiled.session(), torch.arange(100, 100 + PROMPT)[None]
    compiled(input_ids=ids, past_key_values=session, logits_to_keep=1)

    def run() -> None:
        for _ in range(IN_A_ROW):
            compiled(input_ids=ids[:, :1], past_key_values=session)

    return run


@torch.no_grad()
def main(out: Path, chosen: list[str]) -> None:
    """Compile the variants, time them, and write the record."""
    steps, firsts = dict[str, Callable[[], object]](), dict[str, float]()
    for name, make in variants().items():
        if chosen and name not in chosen:
            continue
        model = make()
        start = time.perf_counter()
        steps[name] = steps_of(qfpass.compile(model, ratio=RATIO, score="recency", store_dtype=None))
        steps[name]()
        firsts[name] = time.perf_counter() - start
        print(f"{name}: first step after {firsts[name]:.1f} s", flush=True)
    ready = {name: (lambda step=step: step) for name, step in steps.items()}
    timings = take_turns(ready, rounds=ROUNDS, seconds=300, device=torch.device("cpu"))
    half = timings["bfloat16"].median if "bfloat16" in timings else float("nan")
    rows = [
        {
            "weights": name,
            "step_ms": 1000 * t.median / IN_A_ROW,
            "of_bfloat16": t.median / half,
            "first_s": firsts[name],
        }
        for name, t in timings.items()
    ]
    record = {"torch": torch.__version__, "threads": torch.get_num_threads(), "ratio": RATIO, "rows": rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
    for row in rows:
        print(f"{row['weights']:32} {row['step_ms']:7.2f} ms  {row['of_bfloat16']:.2f}x bfloat16's")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
