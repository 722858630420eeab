"""From the start of `qfpass serve` on an export to the first token of its first answer, by HTTP.

    python benchmarks/server_start.py FOLDER [--exported FOLDER] [--rows 16] [--rounds 3]

FOLDER holds real weights and their tokenizer. They are exported first, which takes minutes, unless that was
done. Prints seconds as JSON, the medians of processes with empty caches: Python and its imports by
themselves, loading the weights by itself, all until the first token, and what of that is beyond the weights.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
from transformers import AutoModelForCausalLM

import qfpass

IMPORTS = "import qfpass.tools.cli, qfpass.serving.server.run"
WEIGHTS = """
import sys, time
from transformers import AutoModelForCausalLM
began = time.perf_counter()
AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
print(time.perf_counter() - began)
"""


def main() -> None:
    """Export if needed, then print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("weights", type=Path)
    parser.add_argument("--exported", type=Path, default=Path("build/exported-to-serve"))
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    if not asked.exported.exists():
        model = AutoModelForCausalLM.from_pretrained(asked.weights).eval()
        qfpass.compile(model, ratio=8).export(asked.exported, rows=asked.rows)
    found = [one_round(asked) for _ in range(asked.rounds)]
    print(json.dumps({name: statistics.median(each[name] for each in found) for name in found[0]}, indent=1))


def one_round(asked: argparse.Namespace) -> dict[str, float]:
    """Seconds of one process of each kind."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, capture_output=True)
    imports = time.perf_counter() - begun
    loading = [sys.executable, "-c", WEIGHTS, str(asked.exported / "model")]
    weights = float(subprocess.run(loading, check=True, capture_output=True, text=True).stdout.split()[-1])
    first_token = served(asked)
    return {
        "imports_s": imports, "weights_s": weights, "first_token_s": first_token,
        "beyond_weights_s": first_token - weights,
    }  # fmt: skip


def served(asked: argparse.Namespace) -> float:
    """Seconds from a server's start to the first token."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["--tokenizer", str(asked.weights), "--rows", str(asked.rows), "--name", "m", "--port", str(port)]
    command = [sys.executable, "-m", "qfpass", "serve", str(asked.exported), *words]
    with tempfile.TemporaryDirectory() as empty:
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{empty}/inductor", "QFPASS_CACHE": f"{empty}/qfpass"}
        begun = time.perf_counter()
        with subprocess.Popen(command, env={**os.environ, **caches}, stderr=subprocess.PIPE) as server:
            try:
                return first_token(f"http://127.0.0.1:{port}", server) - begun
            finally:
                server.terminate()


def first_token(url: str, server: subprocess.Popen[bytes]) -> float:
    """When the first token of an answer has come."""
    body = {"model": "m", "prompt": "The sky is blue because", "stream": True}
    while server.poll() is None:
        try:
            with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
                answer.raise_for_status()
                next(answer.iter_lines())
                return time.perf_counter()
        except httpx.ConnectError:
            time.sleep(0.02)
    assert server.stderr is not None
    raise SystemExit(f"the server has ended: {server.stderr.read().decode()[-2000:]}")


if __name__ == "__main__":
    main()
