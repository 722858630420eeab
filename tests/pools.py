"""Tiny models of every kind of store, and sessions alone that a pool's rows are compared with."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from bounded import run_plainly
from rows import text
from tiny import FAMILIES
from torch import nn

import qfpass
from qfpass import Session

ROWS, CONTEXT, BUDGETS = 3, 70, (None, 8, 11)


def made(
    family: str = "gemma3", head_dim: int = 8, dtype: torch.dtype = torch.float32, **chosen: Any
) -> nn.Module:
    """Rings of 5 beside 12 slots; no ties in the "random" score, so rounding never decides."""
    own: dict[str, Any] = {
        "budget": 12, "chunk": 8, "recent": 3, "sinks": 2, "score": "random", "backend": "eager",
        "context_length": CONTEXT, "verify": False,
    }  # fmt: skip
    model = FAMILIES[family](window=5, head_dim=head_dim).to(dtype)
    return run_plainly(qfpass.compile(model, **(own | chosen)))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "rings and slots": lambda: made(overflow="rerotate"),
    "positions that go on": lambda: made(overflow="continue"),
    "every key": lambda: made("llama", budget=None, ratio=1, recent=None, score=None),
    "a layer with every key": lambda: made("llama", skip_layers=(1,)),
    "int8": lambda: made("llama", store_dtype=torch.int8),
    # In float32 a sum's order may decide a code, and with it later logits.
    "four bits": lambda: made("llama", store_dtype="int8-int4", head_dim=32, dtype=torch.float64),
}
MODELS = dict[str, nn.Module]()


def model_of(kind: str) -> Any:
    if kind not in MODELS:
        MODELS[kind] = KINDS[kind]()
    return MODELS[kind]


def contents(session: Session) -> list[torch.Tensor]:
    return [tensor.clone() for store in session.stores for tensor in store]


class Twin:
    """A session alone, which is told what a pool's row is told."""

    def __init__(self, model: Any, session: Session) -> None:
        self.model, self.session = model, session

    def check(self, ids: torch.Tensor, logits: torch.Tensor) -> None:
        wanted = self.model(ids, past_key_values=self.session, logits_to_keep=len(logits)).logits[0]
        torch.testing.assert_close(logits, wanted, atol=1e-4, rtol=1e-4)

    def check_state(self, other: Session) -> None:
        own = self.session
        assert (own.row_tokens or (0,), own.columns, own.slots) == (
            other.row_tokens,
            other.columns,
            other.slots,
        )
        if own.tokens_seen:
            assert own.rows == other.rows
            assert torch.equal(own.read_ids.rows()[0], other.read_ids.rows()[0])
            torch.testing.assert_close(contents(own), contents(other), atol=1e-4, rtol=1e-4)


def read_texts(model: Any, pool: Any, lengths: Sequence[int]) -> list[Twin]:
    """Twins of rows 0, 1, ... that have joined and read texts of these lengths."""
    twins = []
    for row, length in enumerate(lengths):
        twins.append(Twin(model, model.session()))
        assert pool.join() == row
        twins[row].check(text(length, seed=row), pool.read(row, text(length, seed=row)))
    return twins
