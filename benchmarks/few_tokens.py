"""A few tokens' products with a weight: ours beside the library's, in times that reading the weight takes.

`python benchmarks/few_tokens.py`, with `--dtype bfloat16`. All in turn, medians.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import fx

from qfpass.kernels.cpu import lowerings
from qfpass.kernels.cpu.step_linear.op import few_token_linears
from qfpass.tools.bench.bandwidth import reader
from qfpass.tools.bench.timing import take_turns

READ, TOKENS, ROWS = "reading memory", (1, 2, 4, 8, 16), 3072
COLUMNS, WEIGHTS = 1536, 24  # so many, one after the other, that no cache holds them


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--seconds", type=float, default=30)
    chosen = parser.parse_args()
    dtype = getattr(torch, chosen.dtype)
    weights = [torch.randn(ROWS, COLUMNS).to(dtype) for _ in range(WEIGHTS)]
    calls: dict[Any, Callable[[], object]] = {}
    for tokens in TOKENS:
        x = torch.randn(tokens, COLUMNS)
        x = x.bfloat16() if dtype == torch.bfloat16 else x
        ours = _compiled(lambda x, weight: few_token_linears(x, [weight]), x, weights[0])
        calls["ours", tokens] = partial(_all, ours, x, weights)
        calls["library", tokens] = partial(_all, torch.nn.functional.linear, x.to(dtype), weights)
    calls[READ], read_nbytes = reader(torch.device("cpu"))
    ready = {name: partial(lambda call: call, call) for name, call in calls.items()}
    timings = take_turns(ready, rounds=40, seconds=chosen.seconds, device=torch.device("cpu"))
    bound = timings[READ].median / read_nbytes * sum(weight.nbytes for weight in weights)
    table = Table("tokens", "ours", "library")
    for tokens in TOKENS:
        table.add_row(
            str(tokens), *(f"{timings[which, tokens].median / bound:.2f}" for which in ("ours", "library"))
        )
    Console().print(table)
    print(f"reading memory: {1e-9 * read_nbytes / timings[READ].median:.1f} GB/s")


def _compiled(function: Callable[..., Any], *operands: torch.Tensor) -> Callable[..., Any]:
    compiled: Any = torch._inductor.compile(fx.symbolic_trace(function), list(operands))
    return lambda *given: compiled(*given)


def _all(product: Callable[..., Any], x: torch.Tensor, weights: list[torch.Tensor]) -> None:
    for weight in weights:
        product(x, weight)


if __name__ == "__main__":
    lowerings.register()
    with torch.no_grad():
        main()
