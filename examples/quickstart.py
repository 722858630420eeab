"""Read 8,000 tokens with SmolLM2-135M in an eighth of the cache, and compare with the full cache.

Run by `make demo`, which fetches the weights and essays first.
"""

import ctypes
import ctypes.util
import gc
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from assets import essays_text, weights_folder
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

import qfpass
from qfpass.waits import Wait

RATIO = 8
PROMPT_TOKENS, NEW_TOKENS = 8000, 48
console = Console(width=130)


class PeakMemory:
    """Largest resident memory, in bytes, above what was held on entry."""

    def __enter__(self) -> "PeakMemory":
        gc.collect()
        _return_freed_memory()
        self._process = psutil.Process()
        self._before = self.peak = self._process.memory_info().rss
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.peak = max(self.peak, self._process.memory_info().rss)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()

    @property
    def extra(self) -> int:
        return self.peak - self._before


def _return_freed_memory() -> None:
    """Give freed heap back to the system (glibc), so that its reuse doesn't hide a peak."""
    library = ctypes.util.find_library("c")
    if library and hasattr(trim := ctypes.CDLL(library), "malloc_trim"):
        trim.malloc_trim(0)


@dataclass
class Run:
    """What one model took to read the prompt and continue it."""

    kv_bytes: int
    extra_peak: int
    prefill_seconds: float
    step_seconds: float
    ids: list[int]


@torch.no_grad()
def read_and_continue(
    model: Any, ids: torch.Tensor, new_cache: Callable[[], Any], kv_bytes: Callable[[Any], int]
) -> Run:
    """Prefill `ids`, then decode greedily one token at a time."""
    cache = new_cache()
    with PeakMemory() as memory:
        start = time.perf_counter()
        output = model(input_ids=ids, cache=cache, logits_to_keep=1)
        prefill = time.perf_counter() - start
        written, steps = [], []
        for _ in range(NEW_TOKENS):
            token = output.logits[:, -1:].argmax(-1)
            written.append(int(token))
            start = time.perf_counter()
            output = model(input_ids=token, cache=cache)
            steps.append(time.perf_counter() - start)
    return Run(kv_bytes(cache), memory.extra, prefill, statistics.median(steps), written)


def full_kv_bytes(cache: DynamicCache) -> int:
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


def show(full: Run, bounded: Run, tokenizer: Any) -> None:
    """Print the comparison."""
    table = Table(title=f"{PROMPT_TOKENS} tokens read, {NEW_TOKENS} written, SmolLM2-135M, float32")
    for column in ("", "KV MiB", "extra peak MiB", "prefill tokens/s", "decode ms/token", "continuation"):
        table.add_column(column)
    for name, run in (("full cache", full), (f"bounded, ratio {RATIO}", bounded)):
        table.add_row(
            name,
            f"{run.kv_bytes / 2**20:.1f}",
            f"{run.extra_peak / 2**20:.0f}",
            f"{PROMPT_TOKENS / run.prefill_seconds:.0f}",
            f"{run.step_seconds * 1e3:.0f}",
            tokenizer.decode(run.ids).replace("\n", " "),
        )
    console.print(table)


def main() -> None:
    """Compile, run both, print one table."""
    tokenizer = AutoTokenizer.from_pretrained(weights_folder())
    model = AutoModelForCausalLM.from_pretrained(weights_folder(), dtype=torch.float32).eval()
    text = tokenizer(essays_text(), return_tensors="pt", verbose=False).input_ids[0]
    prompt = text[None, :PROMPT_TOKENS]

    start = time.perf_counter()
    compiled = qfpass.compile(model, ratio=RATIO)
    warm = compiled.session()
    for ids in (prompt[:, :600], prompt[:, :1]):  # reading a text and a token; each compiles once
        compiled(input_ids=ids, cache=warm, logits_to_keep=1)
    console.print(f"ready in {time.perf_counter() - start:.0f} s")
    console.print(qfpass.report(compiled))

    with Wait(f"reading {PROMPT_TOKENS:,} tokens in a bounded store, and writing"):
        bounded = read_and_continue(compiled, prompt, compiled.session, lambda session: session.kv_nbytes)
    with Wait("the same with the full cache", "the model as it was"):
        full = read_and_continue(model, prompt, lambda: DynamicCache(config=model.config), full_kv_bytes)
    show(full, bounded, tokenizer)


if __name__ == "__main__":
    main()
