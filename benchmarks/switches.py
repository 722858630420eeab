"""What each optimisation gives: `python benchmarks/switches.py OUT [--layers N]`, an hour on two cores.

Every round runs processes with nothing off, then with each switch off in turn: cold start (compile to first
step, empty Inductor cache), warm start (the same with that cache), a 2,048-token prompt and a step on full
stores. Medians over rounds, as the ratio of off to nothing off, so that 1.10 means that a switch saves a
tenth; a second run with nothing off tells the noise. SmolLM2, or with --layers its shape with so many layers
of random weights, scored by recency.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from qfpass import Switches, compile
from qfpass.tools.bench.setup import Setup

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from assets import weights_folder

SLOTS, PROMPT, STEPS = 1024, 2048, 40
PARTS = ("cold", "warm", "prompt", "step")
NOTHING = "nothing"


def measure(off: str, layers: int | None) -> dict[str, float]:
    """Seconds of one process, its caches wherever the environment says."""
    setup = Setup(str(weights_folder()), score="recency", layers=layers)
    model = setup.load()
    ids = torch.randint(model.config.vocab_size, (1, PROMPT), generator=torch.Generator().manual_seed(0))
    switches = Switches() if off == NOTHING else Switches(**{off: False})
    start = time.perf_counter()
    compiled: Any = compile(model, budget=SLOTS, score="recency", switches=switches)
    session = compiled.session()
    compiled(input_ids=ids[:, :600], past_key_values=session, logits_to_keep=1)
    compiled(input_ids=ids[:, :1], past_key_values=session)
    seconds = {"start": time.perf_counter() - start}
    session.reset()
    start = time.perf_counter()
    compiled(input_ids=ids, past_key_values=session, logits_to_keep=1)
    seconds["prompt"] = time.perf_counter() - start
    steps = []
    for i in range(STEPS):
        start = time.perf_counter()
        compiled(input_ids=ids[:, i : i + 1], past_key_values=session)
        steps.append(time.perf_counter() - start)
    return seconds | {"step": statistics.median(steps)}


def in_process(off: str, layers: int | None, cache: str) -> dict[str, float]:
    """`measure` in a process of its own, with Inductor's cache in that folder."""
    command = [sys.executable, __file__, "--measure", off, *(["--layers", str(layers)] if layers else [])]
    settings = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def one_round(off: str, layers: int | None) -> dict[str, float]:
    """A cold start and a warm one; prompt and step are the warm process's."""
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = (in_process(off, layers, cache) for _ in range(2))
    return {"cold": cold["start"], "warm": warm["start"], "prompt": warm["prompt"], "step": warm["step"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", nargs="?", type=Path, help="a JSON file for the figures")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--switch", action="append", choices=[f.name for f in fields(Switches)])
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        print(json.dumps(measure(asked.measure, asked.layers)))
        return
    names = asked.switch or [f.name for f in fields(Switches)]
    rounds: list[dict[str, dict[str, float]]] = []
    for _ in range(asked.rounds):
        on = one_round(NOTHING, asked.layers)
        seconds = {name: one_round(name, asked.layers) for name in (*names, NOTHING)}
        rounds.append({name: {part: seconds[name][part] / on[part] for part in PARTS} for name in seconds})
        print(json.dumps({"on": on, "off over on": rounds[-1]}), flush=True)
    found = {
        name: {part: statistics.median(each[name][part] for each in rounds) for part in PARTS}
        for name in rounds[0]
    }
    for name, ratios in found.items():
        print(name, {part: f"{ratio:.2f}" for part, ratio in ratios.items()})
    if asked.out:
        asked.out.write_text(json.dumps({"layers": asked.layers, "off over on": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
