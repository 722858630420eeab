"""Regions: layers of one kind share one module, and cutting changes no number."""

import pytest
import torch
from decoders import Attend, causal, decoder, text, within

from qfpass.attention.find import find_attentions
from qfpass.capture.export import capture
from qfpass.regions.outline import Outlined, outline
from qfpass.rewriting.uncompressed import Uncompressed


def outlined_decoder(attends: list[Attend]) -> tuple[Uncompressed, Outlined]:
    captured = capture(decoder(attends))
    program = Uncompressed(captured, find_attentions(captured, 64), capacity=24, batch=2)
    return program, outline(program.module)


@pytest.mark.parametrize(
    ("attends", "kinds"),
    [
        ([causal] * 3, 1),
        ([within(8), causal], 2),
        ([within(8), within(8), causal, within(8), within(8), causal], 2),
        ([within(4), within(8), causal], 3),
    ],
    ids=["alike", "two", "two, repeated", "three"],
)
def test_kinds_and_regions(attends: list[Attend], kinds: int) -> None:
    _, outlined = outlined_decoder(attends)
    assert (outlined.kinds, outlined.regions) == (kinds, len(attends))
    assert outlined.head is not None
    regions = {node.target for node in outlined.body.graph.nodes if node.op == "call_module"}
    assert len(regions) == kinds


@pytest.mark.parametrize(
    "attends", [[causal] * 3, [within(4), causal, within(4)]], ids=["alike", "two kinds"]
)
@torch.no_grad()
def test_body_then_head_is_the_rewritten_decoder(attends: list[Attend]) -> None:
    program, outlined = outlined_decoder(attends)
    assert outlined.head is not None
    ids = text(14, batch=2)
    pieces = [ids[:, :7], ids[:, 7:8], ids[:, 8:]]
    wanted = [program.read(piece) for piece in pieces]
    program.restart()
    for piece, logits in zip(pieces, wanted, strict=True):
        hidden = outlined.body(*program.inputs(piece))
        torch.testing.assert_close(outlined.head(hidden), logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_head_works_token_by_token() -> None:
    program, outlined = outlined_decoder([causal] * 2)
    assert outlined.head is not None
    hidden = outlined.body(*program.inputs(text(9, batch=2)))
    whole = outlined.head(hidden)
    torch.testing.assert_close(outlined.head(hidden[:, [3, 8]]), whole[:, [3, 8]])


def test_parameters_are_shared() -> None:
    program, outlined = outlined_decoder([causal] * 2)
    assert outlined.head is not None
    theirs = {p.data_ptr() for p in program.module.parameters()}
    mine = {p.data_ptr() for m in (outlined.body, outlined.head) for p in m.parameters()}
    assert mine == theirs
