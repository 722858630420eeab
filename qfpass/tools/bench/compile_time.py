"""Time from `compile` to the first token, in a fresh process with empty caches, then with full ones.

`python -m qfpass.tools.bench.compile_time` measures one such process.
"""

import random
import tempfile
import time
from dataclasses import asdict, replace
from typing import Any

import torch

from ...reporting import report
from ..evaluate.models import load_config
from .filters import ensure_filters
from .fresh import answer, arguments, in_fresh_process
from .record import Figure
from .setup import Setup

PROMPT = 600  # tokens: more than a chunk
PARTS = ("compile", "first token", "first step")


def compile_time(setup: Setup, slots: int) -> list[Figure]:
    """Seconds from calling `qfpass.compile` to its return, to a prompt's logits and to the first step's."""
    figures: list[Figure] = []
    ensure_filters(setup, **_sizes(setup, slots, 0))
    with tempfile.TemporaryDirectory() as cache:
        for heat in ("cold", "warm"):
            asked = {"setup": asdict(setup), "slots": slots, "calls": 0}
            found = in_fresh_process("compile_time", asked, {"TORCHINDUCTOR_CACHE_DIR": cache})
            name = f"{heat}, {setup.mode or 'default'}, {setup.layers or 'all'} layers"
            for part in PARTS:
                figures.append(_figure(f"{name}: to {part}", setup, slots, "s", found[part]))
    return figures


def depth(setup: Setup, layers: tuple[int, int], slots: int) -> list[Figure]:
    """`compile_time` of models of two depths with random weights (scored by recency, without filters)."""
    return [
        figure
        for count in layers
        for figure in compile_time(replace(setup, layers=count, score="recency", filters=None), slots)
    ]


def recompiles(setup: Setup, slots: int, calls: int = 200) -> list[Figure]:
    """The number of graphs compiled after warm-up, while `calls` random lengths are read."""
    asked = {"setup": asdict(setup), "slots": slots, "calls": calls}
    found = in_fresh_process("compile_time", asked)
    return [_figure(f"{calls} random lengths after warm-up", setup, slots, "graphs", found["graphs"])]


def _figure(name: str, setup: Setup, slots: int, unit: str, value: float) -> Figure:
    return Figure("compile", name, setup.dtype, 1, PROMPT, unit, value, slots=slots)


def measure(setup: Setup, slots: int, calls: int) -> dict[str, Any]:
    """Seconds since `compile` was called, part by part, and graphs compiled in `calls` calls after that."""
    model = setup.load()
    ids = torch.randint(model.config.vocab_size, (1, PROMPT)).to(setup.place)
    sizes = _sizes(setup, slots, calls)
    found, start = dict[str, Any](), time.perf_counter()
    compiled = setup.compile(model, **sizes)
    session = compiled.session()
    found["compile"] = time.perf_counter() - start
    compiled(input_ids=ids, past_key_values=session, logits_to_keep=1)
    found["first token"] = time.perf_counter() - start
    compiled(input_ids=ids[:, :1], past_key_values=session)
    found["first step"] = time.perf_counter() - start
    return found | {"graphs": _graphs_after(compiled, ids, calls)}


def _sizes(setup: Setup, slots: int, calls: int) -> dict[str, int]:
    """Slots, and room for all calls; for none the model's own context, if the prompt is well within it."""
    if calls:
        return {"budget": slots, "context_length": calls * PROMPT}
    own = load_config(setup.model).get_text_config().max_position_embeddings
    return {"budget": slots, "context_length": max(own, 4 * PROMPT)}


def _graphs_after(compiled: Any, ids: torch.Tensor, calls: int) -> int:
    """Half of the calls are steps, a quarter begins a new text."""
    choose, session = random.Random(0), compiled.session()
    before = report(compiled).graphs_compiled
    for _ in range(calls):
        if choose.random() < 0.25:
            session.reset()
        length = 1 if choose.random() < 0.5 else choose.randint(2, PROMPT)
        compiled(input_ids=ids[:, :length], past_key_values=session, logits_to_keep=1)
    return report(compiled).graphs_compiled - before


if __name__ == "__main__":
    asked = arguments()
    asked["setup"] = Setup(**asked["setup"])
    answer(measure(**asked))
