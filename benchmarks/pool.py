"""What a pool's steps cost on SmolLM2-135M: `python benchmarks/pool.py`, with `--dtype bfloat16` or `--tiny`.

- 8 conversations stepped together in a pool of 8 rows, and 8 sessions one after the other: tokens a second.
- A step of 4 and of 16 rows, beside the time in which the memory gives what it must read: weights and stores.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import qfpass
from qfpass.tools.bench.bandwidth import reader, weight_nbytes
from qfpass.tools.bench.timing import take_turns

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from assets import weights_folder

CONVERSATIONS, WIDTHS = 8, (4, 16)
READ = "reading memory"


def tiny(dtype: torch.dtype) -> nn.Module:
    """A small random model, to try this script with."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--slots", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--tiny", action="store_true")
    chosen = parser.parse_args()
    dtype = getattr(torch, chosen.dtype)
    original = (
        tiny(dtype) if chosen.tiny else AutoModelForCausalLM.from_pretrained(weights_folder(), dtype=dtype)
    )
    model: Any = qfpass.compile(
        original.eval(),
        budget=chosen.slots,
        score="recency",
        overflow="continue",
        store_dtype=None,
        verify=False,
    )
    text = torch.arange(chosen.slots + 10) % 200  # full stores, from where on every step costs the same

    def one_by_one() -> None:
        for session in sessions:
            model(text[None, :1], past_key_values=session)

    sessions = [model.session() for _ in range(CONVERSATIONS)]
    for session in sessions:
        model(text[None], past_key_values=session, logits_to_keep=1)
    pools = {rows: model.pool(rows) for rows in sorted({CONVERSATIONS, *WIDTHS})}
    steps: dict[Any, Callable[[], object]] = {"one by one": one_by_one}
    for rows, pool in pools.items():
        pool.join(sessions[0])
        for _ in range(rows - 1):
            pool.fork(0)
        steps[rows] = partial(pool.step, dict.fromkeys(range(rows), 1))
    steps[READ], read_nbytes = reader(torch.device("cpu"))
    ready = {name: partial(lambda call: call, call) for name, call in steps.items()}
    timings = take_turns(ready, rounds=40, seconds=chosen.seconds, device=torch.device("cpu"))
    seconds_a_byte = timings[READ].median / read_nbytes

    together, apart = timings[CONVERSATIONS].median, timings["one by one"].median
    print(
        f"{CONVERSATIONS} conversations, {chosen.slots} slots, {chosen.dtype}: "
        f"{CONVERSATIONS / together:.0f} tokens/s in a pool, {CONVERSATIONS / apart:.0f} one by one, "
        f"{apart / together:.2f} times"
    )
    table = Table("rows", "step, ms", "bound, ms", "step / bound")
    for rows in WIDTHS:
        bound = seconds_a_byte * (weight_nbytes(original) + pools[rows].nbytes)
        step = timings[rows].median
        table.add_row(str(rows), f"{1000 * step:.1f}", f"{1000 * bound:.1f}", f"{step / bound:.2f}")
    Console().print(table)
    print(f"reading memory: {1e-9 / seconds_a_byte:.1f} GB/s; {qfpass.report(model).graphs_compiled} graphs")


if __name__ == "__main__":
    with torch.no_grad():
        main()
