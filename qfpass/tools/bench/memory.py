"""Peak memory of a long prompt; `python -m qfpass.tools.bench.memory` measures one contender.

Two differences are measured: the peak minus the memory in use after loading the weights, and minus that after
the graphs were compiled and had run. On a CPU memory is the resident set, on a GPU what the allocator holds.
"""

import ctypes
import ctypes.util
import gc
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from .filters import ensure_filters
from .fresh import answer, arguments, in_fresh_process
from .record import Figure
from .setup import Setup, full_caches

CHUNK = 512
INTERVAL = 0.002
OURS, THEIRS = "qfpass", "DynamicCache, eager"


def memory(setup: Setup, tokens: int, ratio: float) -> list[Figure]:
    """Peak MiB for a prompt of `tokens` at `ratio`, and with transformers' own full cache.

    With the full cache only the last chunk is read; the earlier keys are random. `qfpass` reads the whole
    prompt. The memory that its compile leaves allocated is part of the figure; that of making filters isn't.
    """
    figures: list[Figure] = []
    ensure_filters(setup, ratio=ratio, context_length=tokens)
    for name in (OURS, THEIRS):
        asked = {"setup": asdict(setup), "contender": name, "tokens": tokens, "ratio": ratio}
        with tempfile.TemporaryDirectory() as cache:
            found = in_fresh_process("memory", asked, {"TORCHINDUCTOR_CACHE_DIR": cache})
        for what in ("above the weights", "above the weights and compiled graphs", "of which cache"):
            value = found[what] / 2**20
            label = f"{name}, {what}"
            figures.append(
                Figure("memory", label, setup.dtype, 1, tokens, "MiB", value, slots=found["slots"])
            )
    return figures


def measure(setup: Setup, contender: str, tokens: int, ratio: float) -> dict[str, Any]:
    """The two differences and the cache in bytes, and the slots a head; see the module."""
    model = setup.load()
    touch(model)
    settle()
    loaded = held(setup.place)
    vocabulary = model.config.vocab_size
    if contender == OURS:
        found = _ours(setup, model, tokens, ratio, vocabulary)
    else:
        found = _theirs(setup, model, tokens, vocabulary)
    peak, warm = found.pop("peak"), found.pop("warm")
    return found | {"above the weights": peak - loaded, "above the weights and compiled graphs": peak - warm}


def _ours(setup: Setup, model: Any, tokens: int, ratio: float, vocabulary: int) -> dict[str, Any]:
    compiled = setup.compile(model, ratio=ratio, context_length=tokens)

    def read(session: Any, length: int) -> None:
        ids = torch.randint(vocabulary, (1, length)).to(setup.place)
        compiled(input_ids=ids, past_key_values=session, logits_to_keep=1)

    warm_up = compiled.session()
    for length in (CHUNK, CHUNK - 1, 1):
        read(warm_up, length)
    del warm_up
    settle()
    warm, session = held(setup.place), compiled.session()
    peak = peak_while(setup.place, lambda: read(session, tokens))
    return {"peak": peak, "warm": warm, "of which cache": session.nbytes, "slots": session.slots}


def _theirs(setup: Setup, model: Any, tokens: int, vocabulary: int) -> dict[str, Any]:
    contender = full_caches(model, setup.backend)["eager"]
    ids = torch.randint(vocabulary, (1, CHUNK)).to(setup.place)
    contender.after(CHUNK, 1).read(ids)
    settle()
    warm, contexts = held(setup.place), list[Any]()

    def read() -> None:
        contexts.append(contender.after(tokens - CHUNK, 1))
        contexts[0].read(ids)

    peak = peak_while(setup.place, read)
    return {"peak": peak, "warm": warm, "of which cache": contexts[0].nbytes, "slots": None}


def touch(model: torch.nn.Module) -> None:
    """Read every weight, since those of a mapped file are in the resident set only once they were read."""
    for weight in (*model.parameters(), *model.buffers()):
        weight.sum()


def settle() -> None:
    """Give freed memory back (to the system, on glibc), so that its reuse doesn't hide a peak."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    library = ctypes.util.find_library("c")
    if library and hasattr(trim := ctypes.CDLL(library), "malloc_trim"):
        trim.malloc_trim(0)


def held(place: torch.device) -> int:
    """Bytes in use now: of the GPU's allocator, or of the resident set."""
    if place.type == "cuda":
        return torch.cuda.memory_allocated(place)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_while(place: torch.device, work: Callable[[], object]) -> int:
    """The most bytes in use at any time while `work` runs; on a CPU as seen every `INTERVAL` seconds."""
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
        work()
        torch.cuda.synchronize(place)
        return torch.cuda.max_memory_allocated(place)
    samples, done = [held(place)], threading.Event()

    def watch() -> None:
        while not done.wait(INTERVAL):
            samples.append(held(place))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(*samples, held(place))


if __name__ == "__main__":
    asked = arguments()
    asked["setup"] = Setup(**asked["setup"])
    answer(measure(**asked))
