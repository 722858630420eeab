"""Filters of a model from a text: the queries of every layer, at the positions of the texts to come."""

import pytest
import torch
from decoders import HEAD_DIM, KV_HEADS, POSITIONS, QUERY_HEADS, Decoder, causal, decoder, text
from tiny import FAMILIES, MAX_POSITIONS

import qfpass
from qfpass.capture.export import capture
from qfpass.errors import InputError
from qfpass.filters import QFilters, QueryStatistics
from qfpass.filters.q_filters import HeadShape

SHAPE = HeadShape(QUERY_HEADS, KV_HEADS, HEAD_DIM)
LENGTH = 20


def of_rows(ids: torch.Tensor, starts: list[int]) -> QFilters:
    """Filters of a decoder's own queries of rows that start there."""
    statistics, layer = QueryStatistics([SHAPE, SHAPE]), 0

    def watched(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        nonlocal layer
        statistics.update(layer % 2, query)
        layer += 1
        return causal(query, key, value, positions)

    model = decoder(watched)
    for row, start in zip(ids, starts, strict=True):
        with torch.no_grad():
            model(row[None], start + torch.arange(len(row))[None])
    return statistics.finish({})


@pytest.mark.parametrize(
    ("context_length", "starts"),
    [(POSITIONS, [0, 54, 108]), (60, [0, 20, 40]), (LENGTH, [0, 0, 0]), (None, [0, 0, 0])],
)
def test_sequences_spread_over_the_context(context_length: int | None, starts: list[int]) -> None:
    """A decoder that states no length of its own takes what is given, else the paper's set-up."""
    ids = text(LENGTH, batch=3)
    found = qfpass.calibrate(
        decoder(), ids, sequence_length=LENGTH, context_length=context_length, progress=False
    )
    for own, expected in zip(found.filters, of_rows(ids, starts).filters, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)
    assert found.source["context_length"] == context_length


def test_rows_of_one_batch_or_one_by_one_are_the_same() -> None:
    ids = text(LENGTH, batch=4)
    together, apart = (qfpass.calibrate(decoder(), d, progress=False) for d in ([ids], list(ids)))
    for one, other in zip(together.filters, apart.filters, strict=True):
        torch.testing.assert_close(one, other)


def test_a_context_without_tokens_is_refused() -> None:
    with pytest.raises(InputError, match="context_length must be at least 1 token, not 0"):
        qfpass.calibrate(decoder(), text(LENGTH), context_length=0, progress=False)


def test_by_default_as_far_as_the_model_says() -> None:
    model = FAMILIES["llama"]()
    found = qfpass.calibrate(model, text(LENGTH, batch=2), progress=False)
    assert found.source["context_length"] == MAX_POSITIONS


def test_attentions_side_by_side_are_all_read() -> None:
    class TwoHalves(Decoder):
        def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
            hidden = self.tokens(input_ids) + self.places(position_ids)
            first, second = (layer(hidden, position_ids) for layer in self.layers)
            return self.head(self.norm(first + second))

    torch.manual_seed(0)
    found = qfpass.calibrate(TwoHalves().eval(), text(LENGTH, batch=2), progress=False)
    assert len(found.filters) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_that_starts_later_sees_no_later_token(family: str) -> None:
    """What spread positions rest on: a captured mask is causal wherever the text stands."""
    graph = capture(FAMILIES[family]()).module
    ids = text(30)
    changed = ids.clone()
    changed[0, -1] = (ids[0, -1] + 1) % 50
    positions = 100 + torch.arange(30)[None]
    with torch.no_grad():
        torch.testing.assert_close(graph(ids, positions)[:, :-1], graph(changed, positions)[:, :-1])
