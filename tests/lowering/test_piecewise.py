"""A piece that Dynamo has looked at once does for other operands what it would have done by Dynamo."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from bounded import CONTEXT, llama
from torch import fx
from torch._dynamo.utils import counters

import qfpass
from qfpass.config import Config
from qfpass.lowering.piecewise import Piece

Operands = tuple[torch.Tensor, ...]


def layer(hidden: torch.Tensor, weight: torch.Tensor, store: torch.Tensor) -> torch.Tensor:
    store.add_(1)
    return hidden * weight + store.sum()


@pytest.fixture
def piece() -> Piece:
    return Piece(fx.symbolic_trace(layer), Config(), None, {})


def operands(seed: int) -> Operands:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(4, generator=generator) for _ in range(3))


@torch.no_grad()
def check_like_layer(given: Operands, piece: Piece, by_dynamo: bool) -> None:
    mine, theirs = ([t.clone() for t in given] for _ in range(2))
    out = piece.call_through_dynamo(mine) if by_dynamo else piece(mine)
    torch.testing.assert_close(out, layer(*theirs))
    torch.testing.assert_close(mine, theirs)


def test_other_operands_of_the_form(piece: Piece) -> None:
    check_like_layer(operands(0), piece, by_dynamo=True)
    for seed in (1, 2):
        check_like_layer(operands(seed), piece, by_dynamo=False)


@torch.no_grad()
def test_operands_that_were_one_tensor_need_not_be_one_again(piece: Piece) -> None:
    hidden, _, store = operands(0)
    out = piece.call_through_dynamo((hidden, hidden, store.clone()))
    torch.testing.assert_close(out, layer(hidden, hidden, store))
    check_like_layer(operands(1), piece, by_dynamo=False)


@torch.no_grad()
def test_another_form_is_learned_by_itself(piece: Piece) -> None:
    for form in ((4,), (2, 4), (4,)):
        for first in (True, False):
            given = tuple(t.expand(form).contiguous() for t in operands(len(form)))
            check_like_layer(given, piece, by_dynamo=first)


def test_code_that_caches_kept_is_called_past_dynamo(
    piece: Piece, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("looked at by Dynamo")

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for kept in (False, True):
        torch.compiler.reset()
        piece = Piece(piece.module, Config(), None, {})
        before = counters["aot_autograd"]["autograd_cache_hit"]
        check_like_layer(operands(0), piece, by_dynamo=True)
        assert (counters["aot_autograd"]["autograd_cache_hit"] > before) == kept
        monkeypatch.setattr(piece, "_compiled", refuse)
        check_like_layer(operands(1), piece, by_dynamo=False)


@torch.no_grad()
def test_nothing_is_held_after_a_call() -> None:
    compiled = qfpass.compile(
        llama(), budget=16, score="recency", chunk=8, context_length=CONTEXT, verify=False
    )
    session = compiled.session()
    compiled(torch.arange(1, 12)[None], past_key_values=session)
    keys = weakref.ref(session.stores[0].keys)
    del session
    assert keys() is None


@torch.no_grad()
def test_a_decoder_of_longer_chunks_does_not_get_the_code_of_shorter_ones() -> None:
    """Whatever Inductor has cached of the first: its lengths are bounded by the chunk."""
    model, ids = llama(), torch.arange(1, 16)[None]
    for chunk in (5, 9):
        settings = {"budget": 16, "score": "recency", "context_length": CONTEXT, "chunk": chunk}
        compiled = qfpass.compile(model, verify=False, **settings)
        compiled(ids[:, :4], past_key_values=compiled.session())
        logits = compiled(ids, past_key_values=compiled.session()).logits
        torch.testing.assert_close(logits, model(ids).logits, rtol=1e-4, atol=1e-4)
