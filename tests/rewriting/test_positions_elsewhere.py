"""Positions that a model counts on another device than its ids lie on."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from decoders import Decoder, text
from host_device import CARDS, in_a_process, needs_ninja

import qfpass


class CountsElsewhere(Decoder):
    """Takes ids alone, and counts the positions of its tokens where its layers are."""

    def __init__(self, count: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.count = count

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        hidden = self.tokens(input_ids).to(self.head.weight.device)
        hidden = hidden + self.places(self.count(hidden))
        for layer in self.layers:
            hidden = layer(hidden, input_ids)
        return self.head(self.norm(hidden)).to(input_ids.device)


def positions_counted_elsewhere(folder: Path) -> None:
    """In every shape; chunk and steps past a full store."""
    ids, results = text(24), []
    counts: Sequence[Callable[[torch.Tensor], torch.Tensor]] = (
        lambda hidden: torch.arange(hidden.shape[1], device=hidden.device),
        lambda hidden: torch.arange(hidden.shape[1], device=hidden.device)[None],
        lambda hidden: torch.ones(hidden.shape[:2], device=hidden.device).cumsum(1).long() - 1,
    )
    for count in counts:
        for cards in (("cpu", "cpu"), CARDS):
            torch.manual_seed(0)
            model = CountsElsewhere(count).to(cards[1]).eval()
            model.tokens.to(cards[0])
            mine = qfpass.compile(model, budget=12, score="recency", context_length=64, backend="eager")
            session = mine.session()
            pieces = ids.to(cards[0]).split([10, *[1] * 14], 1)
            results.append(torch.cat([mine(piece, past_key_values=session).cpu() for piece in pieces], 1))
        torch.testing.assert_close(results[-1], results[-2], atol=1e-4, rtol=1e-4)


@needs_ninja
@pytest.mark.slow
def test_they_follow_the_text_there(tmp_path: Path) -> None:
    in_a_process([positions_counted_elsewhere], tmp_path)
