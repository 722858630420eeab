"""One query over 30 layers' stores of SmolLM2's shapes: the library's FlashAttention, Inductor's loops, ours.

`python benchmarks/one_query.py`: milliseconds for all layers, each under torch.compile, in turn.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from qfpass.code_digest import DIGEST
from qfpass.kernels.cpu import flash, lowerings
from qfpass.kernels.cpu.step_attention.attend import attend_step, attend_written_out
from qfpass.store.int8_slots import quantize
from qfpass.tools.bench.timing import take_turns

LAYERS, KV_HEADS, GROUP, DIM, SCALE = 30, 3, 3, 64, 0.125
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def of_eight_bits(query: Any, keys: Any, key_scales: Any, values: Any, value_scales: Any) -> Any:
    """Our loops, over codes and scales."""
    return attend_step(query, keys, values, scale=SCALE, scales=(key_scales, value_scales))


def calls(batch: int, slots: int, dtype: torch.dtype) -> dict[str, Callable[[], Any]]:
    """All layers' attention, by name."""
    query = torch.randn(batch, KV_HEADS * GROUP, 1, DIM).to(dtype)
    stores = [[torch.randn(batch, KV_HEADS, slots, DIM).to(dtype) for _ in range(2)] for _ in range(LAYERS)]
    codes = [(*quantize(keys), *quantize(values)) for keys, values in stores]
    ways: dict[str, tuple[Any, list[Any]]] = {
        "FlashAttention": (partial(flash.attend, scale=SCALE), stores),
        "Inductor's loops": (partial(attend_written_out, scale=SCALE), stores),
        "ours": (partial(attend_step, scale=SCALE), stores),
        "ours, int8": (of_eight_bits, codes),
    }

    def over_all(function: Any, operands: list[Any]) -> list[Any]:
        return [function(query, *each) for each in operands]

    return {
        name: partial(over_all, torch.compile(function, dynamic=False), operands)
        for name, (function, operands) in ways.items()
    }


def main() -> None:
    """See the module."""
    lowerings.register()
    # Inductor's caches don't look at them.
    torch.compiler.config.cache_key_tag = DIGEST  # type: ignore[attr-defined]
    names = ("FlashAttention", "Inductor's loops", "ours", "ours, int8")
    table = Table("dtype", "batch", "slots", *names)
    for dtype, batch, slots in [("float32", 1, 1024), ("float32", 4, 1024), ("bfloat16", 1, 1024)]:
        torch._dynamo.reset()
        ready = {n: partial(lambda c: c, call) for n, call in calls(batch, slots, DTYPES[dtype]).items()}
        timings = take_turns(ready, rounds=40, seconds=10, device=torch.device("cpu"))
        medians = (f"{1000 * timings[name].median:.2f}" for name in names)
        table.add_row(dtype, str(batch), f"{slots:,}", *medians)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
