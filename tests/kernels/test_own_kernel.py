"""A kernel of the caller's own, given to compile."""

from typing import Any

import pytest
import torch
from decoders import causal, decoder, places, text, within

import qfpass
from qfpass.errors import ConfigError, VerificationError
from qfpass.kernels import reference

CALLS = list[tuple[int, int]]()


def noted(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **form: Any) -> Any:
    """The reference, which notes how many queries and keys it was given."""
    CALLS.append((query.shape[2], key.shape[2]))
    return reference.attend(query, key, value, **form)


def twice(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **form: Any) -> Any:
    """Another scale than asked for."""
    return reference.attend(query, key, value, **(form | {"scale": 2 * form["scale"]}))


@torch.no_grad()
def test_it_runs_for_chunks_and_steps() -> None:
    model, ids = decoder([causal, within(5)]), text(20)
    compiled: Any = qfpass.compile(
        model, context_length=64, backend="eager", kernel=qfpass.Kernel("noted", noted)
    )
    CALLS.clear()
    session = compiled.session()
    parts = [compiled(ids[:, :19], past_key_values=session), compiled(ids[:, 19:], past_key_values=session)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids, places(ids)), atol=1e-4, rtol=1e-4)
    assert {queries for queries, _ in CALLS} == {19, 1}
    assert "noted" in str(qfpass.report(compiled))


def test_it_is_proven() -> None:
    with pytest.raises(VerificationError, match="differs from Decoder"):
        qfpass.compile(decoder(), context_length=64, backend="eager", kernel=qfpass.Kernel("twice", twice))


@torch.no_grad()
def test_inductor_compiles_it() -> None:
    model, ids = decoder(), text(20)
    compiled: Any = qfpass.compile(model, budget=12, score="recency", context_length=64, chunk=7)
    mine: Any = qfpass.compile(
        model, budget=12, score="recency", context_length=64, chunk=7,
        kernel=qfpass.Kernel("reference", reference.attend),
    )  # fmt: skip
    torch.testing.assert_close(mine(ids), compiled(ids), atol=1e-4, rtol=1e-4)


def test_something_else_is_refused() -> None:
    kernel: Any = reference.attend
    with pytest.raises(ConfigError, match=r"kernel must be a qfpass\.Kernel"):
        qfpass.compile(decoder(), context_length=64, kernel=kernel)
