"""Conversations over long documents, by OpenAI's client, on one server after the other: make bench-serving

Each conversation opens with a document of its own and asks turn by turn; all run at once. A table tells the
time to first token from the second turn on, seconds and tokens in all, keys and values, and each server's
memory.

`--start qfpass`, `transformers`, `llama.cpp`, `openvino` or `openvino-eviction` start a server of MODEL. The
last three want a GGUF by --gguf, and an environment's interpreter that has llama-cpp-python[server] or
benchmarks/openvino/requirements.txt. `--url NAME=http://...` measures a server that runs.
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import openai
import psutil
from transformers import AutoTokenizer

from qfpass.tools.evaluate import read_text

QUESTIONS = (
    "What is this text about?", "Name a person in it.", "What happens first?", "What happens last?",
    "Which place is named?", "Say it in one sentence.", "What surprised you?", "What is left open?",
)  # fmt: skip
USAGE = {"stream_options": {"include_usage": True}}  # which transformers' server doesn't know


@dataclass
class Measured:
    """What one server did; seconds and bytes."""

    server: str
    first_token_p50: float
    first_token_p95: float
    seconds: float
    tokens: int  # of all answers, which may be of different lengths
    cached_tokens: int
    prompt_tokens: int
    kv_bytes: float | None
    memory_most: int
    failures: int


@dataclass
class Turn:
    number: int
    first_token: float
    tokens: int
    prompt_tokens: int
    cached_tokens: int


def converse(url: str, model: str, document: str, asked: argparse.Namespace, name: str) -> list[Turn]:
    """One conversation, turn by turn."""
    client = openai.OpenAI(
        base_url=f"{url}/v1", api_key="none", timeout=3600, default_headers={"x-session-id": name}
    )
    messages, turns = [{"role": "system", "content": f"Answer from this text.\n\n{document}"}], []
    for number in range(asked.turns):
        messages.append({"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]})
        begun, first, text, usage = time.perf_counter(), None, "", None
        stream = client.chat.completions.create(
            model=model, messages=messages, max_tokens=asked.tokens, temperature=0, stream=True,
            extra_body={} if name.startswith("transformers") else USAGE,
        )  # fmt: skip
        pieces = 0
        for event in stream:
            usage = event.usage or usage
            piece = (event.choices[0].delta.content or "") if event.choices else ""
            if piece:
                first, pieces = first or time.perf_counter() - begun, pieces + 1
                text += piece
        details = getattr(usage, "prompt_tokens_details", None)
        turns.append(
            Turn(
                number, first or time.perf_counter() - begun, getattr(usage, "completion_tokens", pieces),
                getattr(usage, "prompt_tokens", 0), getattr(details, "cached_tokens", None) or 0,
            )
        )  # fmt: skip
        messages.append({"role": "assistant", "content": text})
    return turns


def measure(
    server: str, url: str, documents: list[str], asked: argparse.Namespace, pid: int | None
) -> Measured:
    """All conversations at once."""
    names = [model.id for model in openai.OpenAI(base_url=f"{url}/v1", api_key="none").models.list()]
    model = asked.model if server == "transformers" or not names else names[0]
    memory, failures = [0], 0
    begun = time.perf_counter()
    with ThreadPoolExecutor(len(documents) + 1) as threads:
        running = [
            threads.submit(converse, url, model, document, asked, f"{server}-{number}")
            for number, document in enumerate(documents)
        ]
        while not all(each.done() for each in running):
            memory.append(resident(pid))
            time.sleep(0.2)
    seconds, turns = time.perf_counter() - begun, list[Turn]()
    for each in running:
        if (error := each.exception()) is not None:
            failures += 1
            print(f"{server}: {error}", file=sys.stderr)
        else:
            turns += each.result()
    later = sorted(turn.first_token for turn in turns if turn.number) or [float("nan")]
    return Measured(
        server, statistics.median(later), later[min(len(later) - 1, int(0.95 * len(later)))],
        seconds, sum(turn.tokens for turn in turns), sum(turn.cached_tokens for turn in turns),
        sum(turn.prompt_tokens for turn in turns), kv_bytes(url), max(memory), failures,
    )  # fmt: skip


def resident(pid: int | None) -> int:
    """Bytes in use by a process and its children; 0 if unknown."""
    if pid is None:
        return 0
    try:
        process = psutil.Process(pid)
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True)))
    except psutil.Error:
        return 0


def kv_bytes(url: str) -> float | None:
    """Keys and values by the server's own account, None if it gives none."""
    text = httpx.get(f"{url}/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("qfpass_kv_bytes ")]
    return float(lines[0].split()[1]) if lines else None


def command(server: str, port: int, asked: argparse.Namespace) -> list[str]:
    """What starts a server."""
    if server == "qfpass":
        own = ["--ratio", str(asked.ratio), "--rows", str(asked.conversations), "--dtype", asked.dtype]
        return [sys.executable, "-m", "qfpass", "serve", asked.model, "--port", str(port), *own]
    if server == "transformers":
        start = "from transformers.cli.transformers import main; main()"
        own = ["--port", str(port), "--dtype", asked.dtype, "--device", "cpu"]
        return [sys.executable, "-c", start, "serve", asked.model, *own]
    if server == "llama.cpp":
        own = ["--model", asked.gguf, "--port", str(port), "--n_ctx", "0", "--cache", "true"]
        return [asked.llama_python, "-m", "llama_cpp.server", *own]
    if server in ("openvino", "openvino-eviction"):
        evicting = [str(asked.slots // 32 * 32)] if server == "openvino-eviction" else []
        script = Path(__file__).parent / "openvino" / "server.py"
        return [asked.openvino_python, str(script), asked.gguf, str(port), *evicting]
    raise SystemExit(f"no server is called {server}: see --help.")


@contextmanager
def started(server: str, asked: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """A context with a server's address and process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", Path(f"{asked.out.with_suffix('')}-{server}.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        process = subprocess.Popen(command(server, port, asked), stdout=output, stderr=output)
    try:
        while True:
            if process.poll() is not None:
                raise SystemExit(f"{server} has ended: see {log}.")
            try:
                httpx.get(f"{url}/v1/models").raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield url, process.pid
    finally:
        process.terminate()
        process.wait()


def documents_of(asked: argparse.Namespace) -> list[str]:
    """A piece of the text for each conversation."""
    tokenizer = AutoTokenizer.from_pretrained(asked.model)
    ids = tokenizer(read_text(asked.text), verbose=False).input_ids
    while len(ids) < asked.conversations * asked.document:
        ids = ids + ids
    pieces = [ids[n * asked.document : (n + 1) * asked.document] for n in range(asked.conversations)]
    return [tokenizer.decode(piece) for piece in pieces]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="a folder or a hub name")
    parser.add_argument("text", type=Path, help="a text or a folder of texts, cut into documents")
    parser.add_argument("--start", action="append", default=[], metavar="SERVER")
    parser.add_argument("--url", action="append", default=[], metavar="NAME=URL")
    parser.add_argument("--conversations", type=int, default=8)
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--document", type=int, default=6000, help="tokens")
    parser.add_argument("--tokens", type=int, default=60, help="of an answer")
    parser.add_argument("--ratio", type=float, default=8.0)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--gguf", default="")
    parser.add_argument("--llama-python", default=sys.executable, help="an interpreter with llama_cpp")
    parser.add_argument("--slots", type=int, default=2432, help="a sequence, of OpenVINO's eviction")
    parser.add_argument("--openvino-python", default=sys.executable, help="one with openvino_genai")
    parser.add_argument("--out", type=Path, default=Path("build/bench/serving.json"))
    asked = parser.parse_args()
    documents, found = documents_of(asked), list[Measured]()
    for server in asked.start:
        with started(server, asked) as (url, pid):
            found.append(measure(server, url, documents, asked, pid))
    for each in asked.url:
        name, _, url = each.partition("=")
        found.append(measure(name, url.rstrip("/"), documents, asked, None))
    for one in found:
        print(one)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
