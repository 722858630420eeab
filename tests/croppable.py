"""Models whose sessions can take tokens back, and what a session holds in an order that can be compared."""

import functools

import torch
from bounded import run_plainly
from tiny import FAMILIES
from torch import nn

import qfpass
from qfpass import Session
from qfpass.store.int4_values import Int4ValueSlots
from qfpass.store.int8_slots import Int8Slots

TAKE_BACK, CHUNK = 4, 8


def compiled(family: str = "llama", **settings: object) -> nn.Module:
    # No ties in the "random" score: rounding never decides what is evicted.
    sizes = {"budget": 12, "chunk": CHUNK, "recent": 5, "sinks": 2, "score": "random"}
    return run_plainly(
        qfpass.compile(FAMILIES[family](window=5), backend="eager", verify=False, **(sizes | settings))
    )


WINDOWS, FEW_BITS = "windows", "few bits, and a layer that keeps every key"


@functools.cache
def model_named(name: str) -> nn.Module:
    """A model with windows, or one whose stores hold few bits."""
    return compiled("gemma3") if name == WINDOWS else compiled(store_dtype=torch.int8, skip_layers=(1,))


def in_order(session: Session, row: int) -> list[list[torch.Tensor]]:
    """For each layer positions, keys, values and scores of a row, each head's by position."""
    layers = []
    for layer, store in enumerate(session.stores):
        order = session.positions(layer)[row].long().argsort(-1)
        held = [*store.dense(torch.float32), store.scores] if hasattr(store, "dense") else list(store)
        tensors = [session.positions(layer), *held]
        layers.append([torch.stack([h[o] for h, o in zip(t[row], order, strict=True)]) for t in tensors])
    return layers


# By store, the codes from 0 to the largest magnitude of keys and of values.
CODES = {Int8Slots: (127, 127), Int4ValueSlots: (127, 8)}


def check_same(
    actual: list[list[torch.Tensor]], wanted: list[list[torch.Tensor]], codes: tuple[int, int] | None = None
) -> None:
    """With `codes`, of `CODES`, one key or value of a hundred may have the code next to the other's."""
    for mine, theirs in zip(actual, wanted, strict=True):
        for number, (one, other) in enumerate(zip(mine, theirs, strict=True)):
            atol = 2e-3
            is_close = torch.isclose(one, other, atol=atol, rtol=1e-3)
            if codes and number in (1, 2) and is_close.float().mean() >= 0.99:
                atol = 1.01 * float(other.abs().max()) / codes[number - 1]
            torch.testing.assert_close(one, other, atol=atol, rtol=1e-3)
