"""kvpress' QFilterPress on the same weights and filters, in an environment of its own: make bench-kvpress

- alone: a prompt is read whole, then compressed once; what is written later is kept.
- in a DecodingPress: the cache is brought back to a fixed size as text is written, every step or every 64.

Writes figures as `qfpass bench` does, which joins them.
"""

import argparse
import json
import statistics
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from kvpress import DecodingPress, QFilterPress
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils.logging import disable_progress_bar

UNTIMED, STEPS = 5, 130
PROMPT = 8192
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def filters(folder: Path, dtype: torch.dtype) -> torch.Tensor:
    """Ours, [layers, kv heads, head dim], in the published sign: kvpress negates the projection."""
    tensors = load_file(folder / "qfilters.safetensors")
    layers = sum(name.startswith("filters.") for name in tensors)
    return -torch.stack([tensors[f"filters.{i}"] for i in range(layers)]).to(dtype)


class OurFilters(QFilterPress):
    """QFilterPress with filters that are no hub repository."""

    def post_init_from_model(self, model: Any) -> None:
        """They are set already."""


def press_of(weights: torch.Tensor, ratio: float = 0.0) -> QFilterPress:
    press = OurFilters(compression_ratio=ratio)
    press.q_filters = weights
    return press


def read(model: Any, cache: Any, ids: torch.Tensor, seen: int) -> torch.Tensor:
    """Tokens `ids` [1, S] after `seen` earlier ones, whatever the cache holds of those."""
    place = torch.arange(seen, seen + ids.shape[1])
    out = model(
        input_ids=ids, past_key_values=cache, position_ids=place[None], cache_position=place, logits_to_keep=1
    )
    return out.logits[:, -1:].argmax(-1)


def steps(model: Any, cache: Any, token: torch.Tensor, seen: int) -> list[float]:
    taken = []
    for step in range(UNTIMED + STEPS):
        start = time.perf_counter()
        token = read(model, cache, token, seen + step)
        taken.append(time.perf_counter() - start)
    return taken[UNTIMED:]


def figure(measure: str, contender: str, dtype: str, slots: int | None, taken: list[float]) -> dict[str, Any]:
    lower, median, upper = (1000 * t for t in statistics.quantiles(taken, n=4, method="inclusive"))
    return {
        "measure": measure, "contender": contender, "dtype": dtype, "batch": 1, "tokens": PROMPT,
        "unit": "ms", "value": median, "lower": lower, "upper": upper, "samples": len(taken), "slots": slots,
    }  # fmt: skip


@torch.no_grad()
def measure(
    model: Any, ids: torch.Tensor, weights: torch.Tensor, slots: int, dtype: str
) -> list[dict[str, Any]]:
    """Decode steps after the prompt, by press; the cache stands at `slots` when the first begins."""
    figures = []

    def run(name: str, size: int | None, pressing: AbstractContextManager[Any]) -> None:
        cache = DynamicCache()
        with nullcontext() if size is None else press_of(weights, 1 - size / PROMPT)(model):
            token = read(model, cache, ids, 0)
        held = cache.layers[0].keys.shape[2]
        assert held == (size or PROMPT), f"{name} holds {held} keys after the prompt"
        with pressing:
            taken = steps(model, cache, token, PROMPT)
        figures.append(figure("decode", f"kvpress, {name}", dtype, size, taken))
        print(figures[-1], "holds in the end:", cache.layers[0].keys.shape[2], flush=True)

    run("no press", None, nullcontext())
    run("QFilterPress alone", slots, nullcontext())
    for interval, often in ((1, "every step"), (64, "every 64 steps")):
        press = DecodingPress(press_of(weights), compression_interval=interval, target_size=slots)
        run(f"QFilterPress in DecodingPress, {often}", slots, press(model))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("filters", type=Path)
    parser.add_argument("essays", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--slots", type=int, default=1024)
    parser.add_argument("--dtype", action="append", choices=list(DTYPES))
    asked = parser.parse_args()
    disable_progress_bar()
    text = "\n\n".join(path.read_text() for path in sorted(asked.essays.glob("*.txt")))
    tokenizer = AutoTokenizer.from_pretrained(asked.weights)
    ids = tokenizer(text[: 8 * PROMPT], return_tensors="pt", verbose=False).input_ids[:, :PROMPT]
    figures: list[dict[str, Any]] = []
    for dtype in asked.dtype or list(DTYPES):
        model = AutoModelForCausalLM.from_pretrained(asked.weights, dtype=DTYPES[dtype]).eval()
        figures += measure(model, ids, filters(asked.filters, DTYPES[dtype]), asked.slots, dtype)
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps({"figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
