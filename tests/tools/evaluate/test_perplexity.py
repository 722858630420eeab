"""Perplexity against cross-entropy by hand, unbounded and bounded."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qfpass.errors import InputError
from qfpass.tools import evaluate

Ids = Callable[..., torch.Tensor]


@torch.no_grad()
def own_nll(model: nn.Module, ids: torch.Tensor, first: int) -> torch.Tensor:
    """Each text's summed negative log-likelihood from one plain pass, counted after `first` tokens."""
    logits = model(input_ids=ids).logits[:, first:-1]
    targets = ids[:, first + 1 :]
    return (
        F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(len(ids), -1).sum(-1)
    )


@pytest.mark.parametrize("first", [0, 1, 50])
def test_a_plain_model_gives_its_own_cross_entropy(model: nn.Module, random_ids: Ids, first: int) -> None:
    ids = random_ids(3, 60)
    expected = own_nll(model, ids, first)
    result = evaluate.perplexity(model, ids, first=first, batch=2)
    assert result.tokens == 3 * (59 - first)
    assert result.nll == pytest.approx(float(expected.sum()), rel=1e-5)
    assert result.per_text == pytest.approx((expected / (59 - first)).exp().tolist(), rel=1e-5)
    assert result.perplexity == pytest.approx(math.exp(float(expected.sum()) / result.tokens), rel=1e-5)
    assert result.footprint.slots is None


def test_ratio_1_gives_the_same(model: nn.Module, compiled: Any, random_ids: Ids) -> None:
    ids = random_ids(2, 700)  # more than one piece
    result = evaluate.perplexity(compiled(ratio=1), ids)
    assert result.first == 0
    assert result.nll == pytest.approx(float(own_nll(model, ids, 0).sum()), rel=1e-4)


@pytest.mark.parametrize("first", [0, 10, 16, 40])
def test_a_bounded_store_is_read_token_by_token(compiled: Any, random_ids: Ids, first: int) -> None:
    bounded, ids = compiled(budget=16), random_ids(3, 50)
    result = evaluate.perplexity(bounded, ids, first=first, batch=2)
    total = torch.zeros(3)
    for row in range(3):
        session = bounded.session()
        at_once = min(first, 16)
        pieces = [ids[row : row + 1, :at_once]] if at_once else []
        pieces += list(ids[row : row + 1, at_once:-1].split(1, dim=1))
        logits = torch.cat([bounded(p, past_key_values=session).logits for p in pieces], dim=1)[0]
        total[row] = F.cross_entropy(logits[first:], ids[row, first + 1 :], reduction="sum")
    assert result.nll == pytest.approx(float(total.sum()), rel=1e-4)
    assert result.footprint.slots == 16


def test_the_budget_is_what_is_not_counted_by_default(compiled: Any, random_ids: Ids) -> None:
    result = evaluate.perplexity(compiled(budget=16), random_ids(1, 40))
    assert result.first == 16
    assert result.tokens == 40 - 1 - 16
    assert result.standard_error is None


def test_the_footprint_is_a_rows_own(model: nn.Module, compiled: Any, random_ids: Ids) -> None:
    token_bytes = 2 * 2 * 2 * 8 * 4  # layers, keys and values, heads, dimension, float32
    ids = random_ids(3, 41)
    assert evaluate.perplexity(compiled(budget=16), ids, first=16).footprint.nbytes == 16 * token_bytes
    assert evaluate.perplexity(model, ids, first=16).footprint.nbytes == 40 * token_bytes


def test_standard_error_over_texts(model: nn.Module, random_ids: Ids) -> None:
    result = evaluate.perplexity(model, random_ids(4, 30))
    logs = torch.tensor(result.per_text).log()
    error = result.standard_error
    assert error == pytest.approx(result.perplexity * float(logs.std()) / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("texts", "first", "message"),
    [
        ([[1, 2, 3], [1, 2]], None, "one length"),
        ([[1, 2, 3]], 2, "nothing to count"),
        ([[0.5, 1.0]], None, "token ids"),
    ],
)
def test_refused(model: nn.Module, texts: list[list[int]], first: int | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        evaluate.perplexity(model, texts, first=first)
