"""How long a new process takes to the first token of a prompt: an exported decoder beside a compiled one.

    python benchmarks/load.py FOLDER [--exported FOLDER] [--tokens 600] [--rounds 5]

FOLDER holds real weights. Processes take turns: one loads what was exported, one compiles with Inductor's
cache warm. Each has its weights in memory before the clock starts. Medians are printed.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

import qfpass

RATIO = 8
STEPS = 50


def main() -> None:
    """Export if needed, then print the medians of both ways as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--exported", type=Path, default=Path("build/exported"))
    parser.add_argument("--tokens", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--once", choices=["load", "compile"], help="measure one way in this process")
    asked = parser.parse_args()
    if asked.once:
        print(json.dumps(measured(asked.once, asked.weights, asked.exported, asked.tokens)))
        return
    if not asked.exported.exists():
        start = time.perf_counter()
        qfpass.compile(model_in(asked.weights), ratio=RATIO).export(asked.exported, weights=False)
        print(f"exported in {time.perf_counter() - start:.0f} s", flush=True)
    found: dict[str, list[dict[str, float]]] = {"load": [], "compile": []}
    for _ in range(asked.rounds):
        for way, runs in found.items():
            command = [sys.executable, __file__, str(asked.weights), "--exported", str(asked.exported)]
            command += ["--tokens", str(asked.tokens), "--once", way]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    medians = {
        way: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for way, runs in found.items()
    }
    print(json.dumps(medians, indent=1))


def model_in(weights: Path) -> torch.nn.Module:
    """The model in float32."""
    model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)
    return model.eval()


@torch.no_grad()
def measured(way: str, weights: Path, exported: Path, tokens: int) -> dict[str, float]:
    """Seconds to the first token of a prompt, and milliseconds of a step on full stores."""
    model = model_in(weights)
    start = time.perf_counter()
    ours = qfpass.load(exported, model) if way == "load" else qfpass.compile(model, ratio=RATIO)
    ready = time.perf_counter()
    session, ids = ours.session(), torch.arange(tokens)[None] % 1000
    token = ours(ids, past_key_values=session, logits_to_keep=1).logits.argmax(-1)
    first = time.perf_counter()
    full = torch.arange(session.slots)[None] % 1000
    ours(full, past_key_values=session, logits_to_keep=1)
    steps = []
    for _ in range(STEPS):
        before = time.perf_counter()
        token = ours(token, past_key_values=session).logits.argmax(-1)
        steps.append(time.perf_counter() - before)
    return {
        "ready_s": ready - start,
        "first_token_s": first - start,
        "step_ms": statistics.median(steps) * 1000,
    }


if __name__ == "__main__":
    main()
