"""flex_attention call sites: read like attention that is written out."""

from collections.abc import Callable

import pytest
import torch
from decoders import KV_HEADS, QUERY_HEADS, decoder
from keep_all import check_rewritten, found
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from qfpass.attention.span import Span
from qfpass.errors import UnsupportedOpError

T = torch.Tensor
SLOPES = [2.0 ** -(i + 1) for i in range(QUERY_HEADS)]


def blocks(shows: Callable[[T, T, T, T], T], query: T) -> object:
    length = query.shape[2]
    return create_block_mask(shows, None, None, length, length, device=query.device)


def causal(b: T, h: T, i: T, j: T) -> T:
    return i >= j


def masked(query: T, key: T, value: T, positions: T) -> T:
    return flex_attention(query, key, value, block_mask=blocks(causal, query), enable_gqa=True, scale=0.3)


def windowed(query: T, key: T, value: T, positions: T) -> T:
    mask = blocks(lambda b, h, i, j: (i >= j) & (i - j < 5), query)
    return flex_attention(query, key, value, block_mask=mask, enable_gqa=True)


def capped(query: T, key: T, value: T, positions: T) -> T:
    def score_mod(score: T, b: T, h: T, i: T, j: T) -> T:
        return torch.where(i >= j, 2 * torch.tanh(score / 2), -float("inf"))

    return flex_attention(query, key, value, score_mod=score_mod, enable_gqa=True)


def sloped(query: T, key: T, value: T, positions: T) -> T:
    def score_mod(score: T, b: T, h: T, i: T, j: T) -> T:
        return score - 2.0 ** -(h + 1).float() * (i - j)

    return flex_attention(
        query, key, value, score_mod=score_mod, block_mask=blocks(causal, query), enable_gqa=True
    )


@pytest.mark.parametrize(
    ("attend", "span", "softcap", "slopes"),
    [
        (masked, Span(), None, None),
        (windowed, Span(window=5), None, None),
        (capped, Span(), 2.0, None),
        (sloped, Span(), None, SLOPES),
    ],
    ids=["masked", "windowed", "capped", "sloped"],
)
def test_is_found_and_rewritten(
    attend: Callable[[T, T, T, T], T], span: Span, softcap: float | None, slopes: list[float] | None
) -> None:
    model = decoder(attend, layers=1)
    captured, (attention,) = found(model)
    assert (attention.kv_heads, attention.span, attention.form.softcap) == (KV_HEADS, span, softcap)
    read = attention.form.bias and attention.form.bias.slopes
    assert read == (None if slopes is None else pytest.approx(slopes))
    check_rewritten(model, captured, [attention])


def test_without_a_mask_is_bidirectional() -> None:
    def attend(query: T, key: T, value: T, positions: T) -> T:
        return flex_attention(query, key, value, enable_gqa=True)

    with pytest.raises(UnsupportedOpError, match=r"layers\.0.*neither causal"):
        found(decoder(attend, layers=1))
