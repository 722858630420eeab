"""Decoders that place tokens by their number in the call: every way to count must follow the text."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from decoders import POSITIONS, VOCABULARY, Decoder, text
from torch import nn

import qfpass

Count = Callable[[torch.Tensor], torch.Tensor]
# Each gives positions [S], [1, S] or [B, S] from the ids [B, S].
COUNTS: dict[str, Count] = {
    "arange": lambda ids: torch.arange(ids.shape[1]),
    "one row": lambda ids: torch.arange(ids.shape[1])[None],
    "from 2": lambda ids: torch.arange(2, ids.shape[1] + 2)[None],
    "ones added up": lambda ids: torch.ones_like(ids).cumsum(1) - 1,
    "ones added up, and an offset": lambda ids: torch.ones(ids.shape).cumsum(1).long() + 1,
    "as numbers": lambda ids: torch.arange(ids.shape[1], dtype=torch.float32).long(),
}


class Counts(Decoder):
    """Takes ids alone; `count` makes its positions."""

    def __init__(self, count: Count) -> None:
        super().__init__()
        self.count = count

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return super().forward(input_ids, self.count(input_ids))


class Slices(Decoder):
    """Takes ids alone and adds the first S rows of its table."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        hidden = self.tokens(input_ids) + self.places.weight[: input_ids.shape[1]]
        for layer in self.layers:
            hidden = layer(hidden, input_ids)
        return self.head(hidden)


class Waves(Slices):
    """Adds sines of the numbers of tokens."""

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        number = torch.arange(input_ids.shape[1], dtype=torch.float32)
        hidden = self.tokens(input_ids) + torch.outer(number, torch.arange(24) / 24).sin()
        for layer in self.layers:
            hidden = layer(hidden, input_ids)
        return self.head(hidden)


def follows_the_text(model: nn.Module) -> None:
    compiled: Any = qfpass.compile(model, context_length=64, chunk=9, backend="eager")
    ids = text(30, batch=2)
    assert POSITIONS > 64 and int(ids.max()) < VOCABULARY
    with torch.no_grad():
        expected = model(ids)
    session = compiled.session()
    ends = (0, 1, 2, 14, 15, 30)
    actual = torch.cat([compiled(ids[:, a:b], past_key_values=session) for a, b in pairwise(ends)], dim=1)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("way", COUNTS)
def test_numbers_of_tokens_go_on_from_the_tokens_seen(way: str) -> None:
    torch.manual_seed(0)
    follows_the_text(Counts(COUNTS[way]).eval())


@pytest.mark.parametrize("kind", [Slices, Waves])
def test_tables_and_waves_go_on_from_the_tokens_seen(kind: type[Decoder]) -> None:
    torch.manual_seed(0)
    follows_the_text(kind().eval())
