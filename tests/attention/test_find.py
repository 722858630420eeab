"""Finding attention in graphs of small decoders, and rewriting what was found."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from decoders import HEAD_DIM, KV_HEADS, QUERY_HEADS, Attend, causal, decoder
from keep_all import check_rewritten, found

from qfpass.errors import NoAttentionError, UnsupportedOpError
from qfpass.kernels import reference
from qfpass.kernels.distance_bias import DistanceBias

GROUP = QUERY_HEADS // KV_HEADS
T = torch.Tensor


def by_expand(query: T, key: T, value: T, positions: T) -> T:
    def wide(t: T) -> T:
        batch, heads, length, dim = t.shape
        t = t[:, :, None].expand(batch, heads, GROUP, length, dim)
        return t.reshape(batch, heads * GROUP, length, dim)

    return F.scaled_dot_product_attention(query, wide(key), wide(value), is_causal=True)


def by_repeat_interleave(query: T, key: T, value: T, positions: T) -> T:
    wide = (t.repeat_interleave(GROUP, dim=1) for t in (key, value))
    return F.scaled_dot_product_attention(query, *wide, is_causal=True)


def in_another_order(query: T, key: T, value: T, positions: T) -> T:
    wide = (t.repeat(1, GROUP, 1, 1) for t in (key, value))
    return F.scaled_dot_product_attention(query, *wide, is_causal=True)


def expanded_outside(query: T, key: T, value: T, positions: T) -> T:
    """Copies that vary fastest are a group's; these vary slowest, though expanded and reshaped alike."""
    wide = (t[:, None].expand(-1, GROUP, -1, -1, -1).flatten(1, 2) for t in (key, value))
    return F.scaled_dot_product_attention(query, *wide, is_causal=True)


@pytest.mark.parametrize("attend", [causal, by_expand, by_repeat_interleave])
def test_repeated_heads_are_stripped(attend: object) -> None:
    model = decoder(attend)  # type: ignore[arg-type]
    captured, attentions = found(model)
    assert [a.index for a in attentions] == [0, 1]
    for i, attention in enumerate(attentions):
        assert f"layers.{i}" in attention.name
        assert (attention.query_heads, attention.kv_heads) == (QUERY_HEADS, KV_HEADS)
        assert (attention.head_dim, attention.value_dim) == (HEAD_DIM, HEAD_DIM)
        assert attention.key.meta["val"].shape[1] == KV_HEADS
        assert attention.form.scale == pytest.approx(HEAD_DIM**-0.5)
    check_rewritten(model, captured, attentions)


@pytest.mark.parametrize("attend", [in_another_order, expanded_outside])
def test_heads_repeated_in_another_order_are_not_stripped(attend: object) -> None:
    model = decoder(attend, layers=1)  # type: ignore[arg-type]
    captured, attentions = found(model)
    assert attentions[0].kv_heads == QUERY_HEADS
    check_rewritten(model, captured, attentions)


def test_scale_is_read() -> None:
    def attend(query: T, key: T, value: T, positions: T) -> T:
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=0.0625, enable_gqa=True
        )

    model = decoder(attend, layers=1)
    captured, attentions = found(model)
    assert attentions[0].form.scale == 0.0625
    check_rewritten(model, captured, attentions)


def test_values_of_another_dimension() -> None:
    def attend(query: T, key: T, value: T, positions: T) -> T:
        seen = F.scaled_dot_product_attention(query, key, value[..., :5], is_causal=True, enable_gqa=True)
        return F.pad(seen, (0, HEAD_DIM - 5))

    model = decoder(attend, layers=1)
    captured, attentions = found(model)
    assert (attentions[0].head_dim, attentions[0].value_dim) == (HEAD_DIM, 5)
    check_rewritten(model, captured, attentions)


def test_mask_and_is_causal_contradict_each_other() -> None:
    def attend(query: T, key: T, value: T, positions: T) -> T:
        mask = positions[:, None, :, None] >= positions[:, None, None, :]
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=True, enable_gqa=True
        )

    with pytest.raises(UnsupportedOpError, match=r"layers\.0.*contradict"):
        found(decoder(attend, layers=1))


def test_dropout_is_refused() -> None:
    def attend(query: T, key: T, value: T, positions: T) -> T:
        return F.scaled_dot_product_attention(
            query, key, value, dropout_p=0.1, is_causal=True, enable_gqa=True
        )

    with pytest.raises(UnsupportedOpError, match=r"layers\.0.*dropout"):
        found(decoder(attend, layers=1))


def test_keys_of_another_length_are_refused() -> None:
    def attend(query: T, key: T, value: T, positions: T) -> T:
        key, value = (torch.cat([t, t], dim=2) for t in (key, value))
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

    with pytest.raises(UnsupportedOpError, match=r"layers\.0.*different lengths"):
        found(decoder(attend, layers=1))


def test_no_attention_is_an_error() -> None:
    def attend(query: T, key: T, value: T, positions: T) -> T:
        return query * value.repeat_interleave(GROUP, dim=1)

    with pytest.raises(NoAttentionError, match="scaled_dot_product_attention"):
        found(decoder(attend))


@pytest.fixture(scope="module")
def flash_attn() -> Iterator[torch.library.Library]:
    """flash-attn's forward operator on CPU, over the reference kernel."""
    name = "flash_attn::_flash_attn_forward"
    if hasattr(torch.ops.flash_attn, "_flash_attn_forward"):
        pytest.skip("the real flash-attn is loaded")
    library = torch.library.Library("flash_attn", "FRAGMENT")
    library.define(
        "_flash_attn_forward(Tensor q, Tensor k, Tensor v, float dropout_p, float softmax_scale, "
        "bool causal, SymInt window_size_left, SymInt window_size_right, float softcap, "
        "Tensor? alibi_slopes, bool return_softmax) -> (Tensor, Tensor, Tensor, Tensor)"
    )

    def forward(
        q: T, k: T, v: T, dropout_p: float, softmax_scale: float, causal: bool,
        window_size_left: int, window_size_right: int, softcap: float, alibi_slopes: T | None,
        return_softmax: bool,
    ) -> tuple[T, T, T, T]:  # fmt: skip
        window = window_size_left + 1 if window_size_left >= 0 else None
        bias = None
        if alibi_slopes is not None and alibi_slopes.shape[-1] == q.shape[2]:
            place = torch.arange(q.shape[1])
            bias = -alibi_slopes[..., None, None] * (place[:, None] - place).abs()
            bias = bias.expand(q.shape[0], -1, -1, -1).masked_fill(place > place[:, None], float("-inf"))
        out, lse = reference.attend(
            *(t.transpose(1, 2) for t in (q, k, v)), softcap=softcap or None, bias=bias,
            scale=softmax_scale, causal=causal and bias is None, window=window,
        )  # fmt: skip
        out = out.transpose(1, 2).contiguous()
        return out, lse.contiguous(), q.new_empty(0), torch.empty(2, dtype=torch.int64)

    library.impl("_flash_attn_forward", forward, "CPU")
    torch.library.register_fake(name, forward, lib=library)
    yield library
    library._destroy()


def call_flash(
    query: T, key: T, value: T, *, causal: bool = True, left: int = -1, right: int = -1,
    softcap: float = 0.0, alibi: T | None = None,
) -> T:  # fmt: skip
    operands = [t.transpose(1, 2) for t in (query, key, value)]
    out, *_ = torch.ops.flash_attn._flash_attn_forward(
        *operands, 0.0, 0.4, causal, left, right, softcap, alibi, False
    )
    return out.transpose(1, 2)


@pytest.mark.parametrize("window", [None, 4])
def test_flash_attn_is_found_and_rewritten(flash_attn: torch.library.Library, window: int | None) -> None:
    def attend(query: T, key: T, value: T, positions: T) -> T:
        left, right = (-1, -1) if window is None else (window - 1, 0)
        return call_flash(query, key, value, causal=True, left=left, right=right)

    model = decoder(attend)
    captured, attentions = found(model)
    for attention in attentions:
        assert attention.heads_last
        assert attention.span.window == window
        assert (attention.query_heads, attention.kv_heads) == (QUERY_HEADS, KV_HEADS)
        assert attention.form.scale == 0.4
    check_rewritten(model, captured, attentions)


def test_flash_attn_with_a_soft_cap_is_found(flash_attn: torch.library.Library) -> None:
    def attend(query: T, key: T, value: T, positions: T) -> T:
        return call_flash(query, key, value, softcap=0.7)

    model = decoder(attend)
    captured, attentions = found(model)
    assert [a.form.softcap for a in attentions] == [0.7, 0.7]
    check_rewritten(model, captured, attentions)


def with_alibi(slopes: Callable[[T], T], left: int = -1) -> Attend:
    def attend(query: T, key: T, value: T, positions: T) -> T:
        return call_flash(query, key, value, alibi=slopes(positions), left=left, softcap=0.7)

    return attend


def test_flash_attn_with_alibi_is_found(flash_attn: torch.library.Library) -> None:
    slopes = [2.0 ** -(i + 1) for i in range(QUERY_HEADS)]
    model = decoder(with_alibi(lambda _: torch.tensor(slopes)))
    captured, attentions = found(model)
    assert [a.form.bias for a in attentions] == [DistanceBias(tuple(slopes))] * 2
    check_rewritten(model, captured, attentions)


@pytest.mark.parametrize(
    ("slopes", "left", "reason"),
    [
        (lambda p: torch.ones(QUERY_HEADS) * p.shape[0], -1, "must be constants"),
        (lambda p: torch.ones(1, QUERY_HEADS), -1, "must be constants"),
        (lambda p: torch.ones(QUERY_HEADS - 1), -1, "a bias for 5 heads"),
        (lambda p: torch.ones(QUERY_HEADS), 3, "distance within a window"),
    ],
    ids=["of the inputs", "by row", "too few", "windowed"],
)
def test_other_slopes_are_refused(
    flash_attn: torch.library.Library, slopes: Callable[[T], T], left: int, reason: str
) -> None:
    with pytest.raises(UnsupportedOpError, match=rf"layers\.0.*{reason}"):
        found(decoder(with_alibi(slopes, left), layers=1))


def test_flash_attn_whose_sums_are_read_is_refused(flash_attn: torch.library.Library) -> None:
    def attend(query: T, key: T, value: T, positions: T) -> T:
        operands = [t.transpose(1, 2) for t in (query, key, value)]
        out, lse, *_ = torch.ops.flash_attn._flash_attn_forward(
            *operands, 0.0, 0.4, True, -1, -1, 0.0, None, False
        )
        return out.transpose(1, 2) * lse[..., None]

    with pytest.raises(UnsupportedOpError, match=r"layers\.0.*log-sum-exps"):
        found(decoder(attend, layers=1))


def test_flash_attn_that_is_not_causal_is_refused(flash_attn: torch.library.Library) -> None:
    def attend(query: T, key: T, value: T, positions: T) -> T:
        return call_flash(query, key, value, causal=False)

    with pytest.raises(UnsupportedOpError, match="bidirectional"):
        found(decoder(attend, layers=1))
