"""Attention written out as a softmax between two products, in the ways that people write it."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from decoders import HEAD_DIM, KV_HEADS, QUERY_HEADS, VOCABULARY, Decoder, decoder, places, text
from keep_all import check_rewritten, found
from torch import nn

from qfpass.attention.find import find_attentions
from qfpass.attention.span import Span
from qfpass.capture.export import capture
from qfpass.errors import NoAttentionError, UnsupportedOpError

T = torch.Tensor
GROUP = QUERY_HEADS // KV_HEADS
LOWEST = torch.finfo(torch.float32).min


def wide(t: T) -> T:
    """[B, Hkv, S, D] -> [B, Hq, S, D]."""
    batch, heads, length, dim = t.shape
    return t[:, :, None].expand(batch, heads, GROUP, length, dim).reshape(batch, heads * GROUP, length, dim)


def gap(positions: T) -> T:
    """[B, 1, S, S]: how many tokens a key lies behind a query."""
    return positions[:, None, :, None] - positions[:, None, None, :]


def written_out(weights: Callable[[T, T], T]) -> Callable[[T, T, T, T], T]:
    """An attention whose weights are made of its logits q @ k^T and the positions."""

    def attend(query: T, key: T, value: T, positions: T) -> T:
        return weights(query @ wide(key).transpose(2, 3), positions) @ wide(value)

    return attend


def shown(positions: T) -> T:
    """[B, 1, S, S]: 1 where a key is seen, else 0."""
    return torch.where(gap(positions) >= 0, 1.0, 0.0)


def added(logits: T, p: T) -> T:
    return (logits * 0.3 + torch.where(gap(p) >= 0, 0.0, LOWEST)).softmax(-1)


def filled(logits: T, p: T) -> T:
    return F.softmax((logits / HEAD_DIM**0.5).masked_fill(gap(p) < 0, float("-inf")), dim=-1)


def chosen(logits: T, p: T) -> T:
    return torch.where(gap(p) >= 0, logits * 0.3, torch.full((), LOWEST)).softmax(-1)


def chosen_otherwise(logits: T, p: T) -> T:
    return torch.where(gap(p) < 0, torch.tensor(-1e9), logits).softmax(3)


def masked_then_scaled(logits: T, p: T) -> T:
    return ((logits + torch.where(gap(p) >= 0, 0.0, LOWEST)) / torch.tensor(3.0)).softmax(-1)


def upcast(logits: T, p: T) -> T:
    masked = logits.double().masked_fill(gap(p) < 0, -1e9) * 0.3
    return F.dropout(masked.softmax(-1, dtype=torch.float64).to(logits.dtype), 0.1, training=False)


def multiplied(logits: T, p: T) -> T:
    return (logits / 3 * shown(p) + -1e4 * (1 - shown(p))).softmax(-1)


def at_least_the_lowest(logits: T, p: T) -> T:
    hidden = torch.where(gap(p) >= 0, 0.0, float("-inf"))
    return torch.max(logits * 0.3 + hidden, torch.tensor(LOWEST)).softmax(-1)


def clamped_at_the_lowest(logits: T, p: T) -> T:
    return (0.3 * logits.masked_fill(gap(p) < 0, float("-inf")).clamp(min=LOWEST)).softmax(-1)


def shaped_like_the_logits(logits: T, p: T) -> T:
    hidden = (gap(p) < 0).expand_as(logits)
    return (0.3 * logits).masked_fill_(hidden, LOWEST).double().softmax(-1).type_as(logits)


def windowed(logits: T, p: T) -> T:
    return (0.3 * logits).masked_fill((gap(p) < 0) | (gap(p) >= 5), float("-inf")).softmax(-1)


def windowed_by_two_masks(logits: T, p: T) -> T:
    causal = (logits * 0.3).masked_fill(gap(p) < 0, float("-inf"))
    return torch.where((gap(p) >= 0) & (gap(p) < 5), causal, -1e9).softmax(-1)


FORMS: dict[str, tuple[Callable[[T, T], T], float, Span]] = {
    "added": (added, 0.3, Span()),
    "filled": (filled, HEAD_DIM**-0.5, Span()),
    "chosen": (chosen, 0.3, Span()),
    "chosen otherwise": (chosen_otherwise, 1.0, Span()),
    "masked, then scaled": (masked_then_scaled, 1 / 3, Span()),
    "upcast": (upcast, 0.3, Span()),
    "multiplied": (multiplied, 1 / 3, Span()),
    "at least the lowest": (at_least_the_lowest, 0.3, Span()),
    "clamped at the lowest": (clamped_at_the_lowest, 0.3, Span()),
    "shaped like the logits": (shaped_like_the_logits, 0.3, Span()),
    "windowed": (windowed, 0.3, Span(5)),
    "windowed by two masks": (windowed_by_two_masks, 0.3, Span(5)),
}


@pytest.mark.parametrize(("weights", "scale", "span"), FORMS.values(), ids=FORMS)
def test_is_found_and_rewritten(weights: Callable[[T, T], T], scale: float, span: Span) -> None:
    model = decoder(written_out(weights))
    captured, attentions = found(model)
    assert [(a.query_heads, a.kv_heads, a.span) for a in attentions] == [(QUERY_HEADS, KV_HEADS, span)] * 2
    assert [a.form.scale for a in attentions] == pytest.approx([scale] * 2)
    check_rewritten(model, captured, attentions)


@pytest.mark.parametrize(
    "product",
    [
        lambda q, k: (q * 0.3) @ wide(k).mT,
        lambda q, k: torch.matmul(q * 0.3, wide(k).permute(0, 1, 3, 2)),
        lambda q, k: torch.matmul(q.double(), wide(k).double().transpose(-1, -2)).float() * 0.3,
    ],
    ids=["scaled query", "permuted key", "upcast"],
)
def test_products_of_query_and_key(product: Callable[[T, T], T]) -> None:
    def attend(query: T, key: T, value: T, positions: T) -> T:
        logits = product(query, key).masked_fill(gap(positions) < 0, float("-inf"))
        return logits.softmax(-1) @ wide(value)

    model = decoder(attend)
    captured, attentions = found(model)
    assert {a.kv_heads for a in attentions} == {KV_HEADS}
    check_rewritten(model, captured, attentions)


@pytest.mark.parametrize(
    ("weights", "reason"),
    [
        (lambda x, p: (5 * torch.tanh(x.masked_fill(gap(p) < 0, -1e9) / 5)).softmax(-1), "masked_fill"),
        (lambda x, p: torch.tanh(torch.tanh(x)).masked_fill(gap(p) < 0, -1e9).softmax(-1), "tanh"),
        (lambda x, p: (x - gap(p) ** 2).masked_fill(gap(p) < 0, -1e9).softmax(-1), "isn't linear"),
        (lambda x, p: (x - x[..., :1]).masked_fill(gap(p) < 0, -1e9).softmax(-1), "sub"),
        (lambda x, p: (x + x.mean()).masked_fill(gap(p) < 0, -1e9).softmax(-1), "depend on the tokens"),
        (lambda x, p: (x * gap(p)).masked_fill(gap(p) < 0, -1e9).softmax(-1), "multiplied by numbers"),
        (lambda x, p: (x * (3 * shown(p)) - 1e4 * (1 - shown(p))).softmax(-1), "multiplied by numbers"),
        (lambda x, p: ((x - 1e4 * (1 - shown(p))) * shown(p)).softmax(-1), "sub"),
        (lambda x, p: x.masked_fill(gap(p) < 0, -1e9).clamp(min=-1e4).softmax(-1), "clamp"),
        (lambda x, p: x.masked_fill(gap(p) < 0, -1e9).clamp(LOWEST, 5.0).softmax(-1), "clamp"),
        (lambda x, p: x.masked_fill(gap(p) < 0, -5.0).softmax(-1), "masked_fill"),
        (lambda x, p: x.softmax(-1), "bidirectional"),
        (lambda x, p: x.masked_fill(gap(p) < 0, -1e9).softmax(-2), "dimension -2"),
    ],
    ids=[
        "cap on mask",
        "caps",
        "curved bias",
        "less the text",
        "reads the text",
        "scaled by place",
        "scaled where seen",
        "mask multiplied",
        "clamped",
        "clamped above",
        "soft mask",
        "none",
        "dim",
    ],
)
def test_other_forms_are_refused_by_name(weights: Callable[[T, T], T], reason: str) -> None:
    with pytest.raises(UnsupportedOpError, match=reason) as error:
        find_attentions(capture(decoder(written_out(weights), layers=1)), 64)
    assert "layers.0" in str(error.value)


def test_other_products_are_refused_by_name() -> None:
    def attend(query: T, key: T, value: T, positions: T) -> T:
        logits = torch.einsum("bhqd,bhke->bhqk", query, wide(key)).masked_fill(gap(positions) < 0, -1e9)
        return logits.softmax(-1) @ wide(value)

    with pytest.raises(UnsupportedOpError, match="einsum"):
        find_attentions(capture(decoder(attend, layers=1)), 64)


class Mixture(Decoder):
    """Chooses between two projections by a router, which is no attention."""

    def __init__(self) -> None:
        super().__init__(written_out(filled), layers=1)
        self.router = nn.Linear(24, 2)
        self.experts = nn.Linear(24, 2 * VOCABULARY)

    def forward(self, input_ids: T, position_ids: T) -> T:
        hidden = self.layers[0](self.tokens(input_ids) + self.places(position_ids), position_ids)
        shares = self.router(hidden).softmax(-1)[..., None, :]
        return (shares @ self.experts(hidden).unflatten(-1, (2, VOCABULARY))).squeeze(-2)


def test_a_router_is_not_attention() -> None:
    model = Mixture().eval()
    captured, attentions = found(model)
    assert len(attentions) == 1
    check_rewritten(model, captured, attentions)
    ids = text(5)
    assert model(ids, places(ids)).shape == (1, 5, VOCABULARY)


def test_a_router_alone_is_no_attention() -> None:
    class Router(Mixture):
        def forward(self, input_ids: T, position_ids: T) -> T:
            hidden = self.tokens(input_ids)
            return self.router(hidden).softmax(-1) @ self.experts(hidden).unflatten(-1, (2, VOCABULARY))[:, 0]

    with pytest.raises(NoAttentionError, match="no softmax between two matmuls"):
        find_attentions(capture(Router().eval()), 64)
