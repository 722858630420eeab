"""Pieces run in turn are the body that they were taken from."""

import pytest
import torch
from decoders import Attend, causal, decoder, text, within

from qfpass.attention.find import find_attentions
from qfpass.capture.export import capture
from qfpass.regions.outline import outline
from qfpass.regions.pieces import Pieces, take_apart
from qfpass.rewriting.uncompressed import Uncompressed


def in_turn(pieces: Pieces, *inputs: torch.Tensor) -> torch.Tensor:
    hidden, *made = pieces.prologue(*inputs)
    values = [*inputs, *pieces.weights, *made]
    for layer in pieces.layers:
        hidden = pieces.kinds[layer.kind](hidden, *(values[number] for number in layer.operands))
    return hidden


@pytest.mark.parametrize(
    "attends", [[causal] * 3, [within(4), causal, within(4)]], ids=["alike", "two kinds"]
)
@torch.no_grad()
def test_in_turn_they_are_the_body(attends: list[Attend]) -> None:
    captured = capture(decoder(attends))
    program = Uncompressed(captured, find_attentions(captured, 64), capacity=24, batch=2)
    outlined = outline(program.module)
    pieces = take_apart(outlined)
    assert len(pieces.layers) == outlined.regions
    assert len(pieces.kinds) == outlined.kinds
    ids = text(9, batch=2)
    expected = outlined.body(*program.inputs(ids))
    program.restart()
    torch.testing.assert_close(in_turn(pieces, *program.inputs(ids)), expected)


def test_what_is_as_long_as_the_text_is_known() -> None:
    captured = capture(decoder([causal] * 2))
    program = Uncompressed(captured, find_attentions(captured, 64), capacity=24, batch=2)
    pieces = take_apart(outline(program.module))
    made = pieces.prologue(*program.inputs(text(7, batch=2)))
    assert pieces.with_length[0] == (1,)
    for tensor, dims in zip(made, pieces.with_length, strict=True):
        assert dims == tuple(dim for dim, size in enumerate(tensor.shape) if size == 7)
