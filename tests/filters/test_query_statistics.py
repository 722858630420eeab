"""Streaming statistics against torch.linalg.svd of the stored queries."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qfpass.errors import InputError
from qfpass.filters import QFilters, QueryStatistics, query_statistics


class Layer(NamedTuple):
    query_heads: int
    kv_heads: int
    head_dim: int


def anisotropic(layer: Layer, tokens: int, seed: int, batch: int = 1, gap: float = 2.0) -> torch.Tensor:
    """Queries with a drift, as real ones have: v1 well apart from the rest. float32."""
    generator = torch.Generator().manual_seed(seed)
    drift = torch.randn(layer.query_heads, 1, layer.head_dim, generator=generator) * gap
    shape = (batch, layer.query_heads, tokens, layer.head_dim)
    return torch.randn(shape, generator=generator) + drift


def by_svd(query: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Directions, kappa and mean from the SVD of queries `[batch, heads, tokens, dim]`."""
    stacked = query.transpose(0, 1).flatten(1, 2).double()
    v1 = torch.linalg.svd(stacked, full_matrices=False).Vh[:, 0]
    mean = stacked.mean(dim=1)
    v1 = v1 * (mean * v1).sum(-1, keepdim=True).sign()
    return v1.float(), (mean * v1).sum(-1).float(), mean.float()


@given(
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    head_dim=st.sampled_from([1, 2, 8, 64]),
    batch=st.integers(1, 3),
    tokens=st.integers(2, 300),
    chunk=st.integers(1, 100),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=40, deadline=None)
def test_agrees_with_svd(
    kv_heads: int, group: int, head_dim: int, batch: int, tokens: int, chunk: int, seed: int
) -> None:
    layer = Layer(kv_heads * group, kv_heads, head_dim)
    query = anisotropic(layer, tokens, seed, batch)
    seen = QueryStatistics([layer])
    for part in query.split(chunk, dim=2):
        seen.update(0, part)
    found = seen.finish({})
    found.check([layer])
    assert found.directions and found.kappa and found.mean_query
    directions, kappa, mean = by_svd(query)
    # Where two singular values nearly meet v1 is arbitrary, so float32 is compared loosely there.
    values = torch.linalg.svdvals(query.transpose(0, 1).flatten(1, 2).double())
    gap = 1 - values[:, 1] / values[:, 0] if min(values.shape[1], head_dim) > 1 else torch.ones(1)
    if gap.min() > 1e-3:
        torch.testing.assert_close(found.directions[0], directions, rtol=1e-5, atol=1e-5)
        grouped = directions.view(kv_heads, group, head_dim).mean(1)
        torch.testing.assert_close(found.filters[0], grouped, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.kappa[0], kappa, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.mean_query[0], mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.directions[0].norm(dim=-1), torch.ones(layer.query_heads))
    assert (found.kappa[0] >= 0).all()


@given(order=st.permutations(range(6)), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_order_makes_no_difference(order: list[int], seed: int) -> None:
    layer = Layer(4, 2, 16)
    parts = anisotropic(layer, 60, seed).split(10, dim=2)
    straight, shuffled = QueryStatistics([layer]), QueryStatistics([layer])
    for part, other in zip(parts, order, strict=True):
        straight.update(0, part)
        shuffled.update(0, parts[other])
    a, b = straight.finish({}), shuffled.finish({})
    for name in ("filters", "directions", "kappa", "mean_query"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-6, atol=1e-7)


def test_close_singular_values_in_float64() -> None:
    """Two directions 0.1% apart: still resolved, though the Gram matrix squares them."""
    torch.manual_seed(0)
    left = torch.linalg.qr(torch.randn(500, 8, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    query = (left * torch.tensor([1.001, 1.0, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8])) @ right.T
    seen = QueryStatistics([Layer(1, 1, 8)])
    seen.update(0, query[None, None])
    found = seen.finish({}).directions
    assert found is not None
    torch.testing.assert_close((found[0][0] @ right[:, 0].float()).abs(), torch.tensor(1.0))
    v1, _, _ = by_svd(query[None, None])
    torch.testing.assert_close(found[0], v1, rtol=0, atol=1e-6)


def test_large_offset_and_many_small_updates_lose_nothing() -> None:
    """20,000 tokens one at a time near 1000: float32 sums would drift."""
    layer = Layer(1, 1, 2)
    query = anisotropic(layer, 20_000, 0) * 0.01 + 1000
    seen = QueryStatistics([layer])
    for token in query.split(20, dim=2):
        seen.update(0, token)
    found = seen.finish({})
    assert found.kappa and found.mean_query
    _, kappa, mean = by_svd(query)
    torch.testing.assert_close(found.kappa[0], kappa, rtol=1e-7, atol=0)
    torch.testing.assert_close(found.mean_query[0], mean, rtol=1e-7, atol=0)


def test_filters_are_the_mean_of_unit_directions_of_a_group() -> None:
    """Heads 0 and 1 share a key head, 2 and 3 the next; lengths of queries don't weigh in."""
    query = torch.zeros(1, 4, 3, 2)
    query[0, 0, :, 0], query[0, 1, :, 1] = 100.0, -1.0
    query[0, 2, :, 0], query[0, 3, :, 0] = -2.0, -3.0
    seen = QueryStatistics([Layer(4, 2, 2)])
    seen.update(0, query)
    found = seen.finish({})
    assert found.kappa
    torch.testing.assert_close(found.filters[0], torch.tensor([[0.5, -0.5], [-1.0, 0.0]]))
    torch.testing.assert_close(found.kappa[0], torch.tensor([100.0, 1.0, 2.0, 3.0]))


@given(seed=st.integers(0, 1000), order=st.permutations(range(4)))
@settings(max_examples=30, deadline=None)
def test_queries_without_a_mean_have_a_repeatable_side(seed: int, order: list[int]) -> None:
    """Every query comes with its negative: the sums cancel to rounding, whatever the order."""
    half = torch.randn(1, 2, 40, 8, generator=torch.Generator().manual_seed(seed)) * 1e3
    parts = torch.cat([half, -half], dim=2).split(20, dim=2)
    straight, shuffled = QueryStatistics([Layer(2, 1, 8)]), QueryStatistics([Layer(2, 1, 8)])
    for part, other in zip(parts, order, strict=True):
        straight.update(0, part)
        shuffled.update(0, parts[other])
    a, b = straight.finish({}), shuffled.finish({})
    assert a.directions and b.directions and a.kappa
    torch.testing.assert_close(a.directions, b.directions, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(a.directions[0].norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(a.kappa[0], torch.zeros(2), rtol=0, atol=1e-9)
    assert (a.directions[0].gather(1, a.directions[0].abs().argmax(1, keepdim=True)) > 0).all()


def test_all_zero_queries_still_give_a_unit_direction() -> None:
    seen = QueryStatistics([Layer(1, 1, 4)])
    seen.update(0, torch.zeros(1, 1, 5, 4))
    found = seen.finish({})
    assert found.directions and found.kappa
    torch.testing.assert_close(found.directions[0].norm(), torch.tensor(1.0))
    assert found.kappa[0].item() == 0.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_floating_dtype(dtype: torch.dtype) -> None:
    layer = Layer(2, 1, 16)
    query = anisotropic(layer, 50, 3).to(dtype)
    seen = QueryStatistics([layer])
    seen.update(0, query)
    found = seen.finish({})
    assert found.directions and found.directions[0].dtype == torch.float32
    torch.testing.assert_close(found.directions[0], by_svd(query)[0], rtol=1e-5, atol=1e-5)


def test_layers_of_different_shape_are_kept_apart() -> None:
    layers = [Layer(4, 2, 8), Layer(3, 1, 16)]
    queries = [anisotropic(layer, 30, index) for index, layer in enumerate(layers)]
    seen = QueryStatistics(layers)
    for index in (1, 0):
        seen.update(index, queries[index])
    found = seen.finish({"model": "tiny"})
    found.check(layers)
    assert found.directions
    for index in (0, 1):
        torch.testing.assert_close(found.directions[index], by_svd(queries[index])[0], rtol=1e-5, atol=1e-5)
    assert found.source == {"model": "tiny", "tokens": 30}


def test_memory_does_not_grow_with_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_statistics, "TOKENS_AT_ONCE", 7)
    layer = Layer(2, 1, 4)
    seen, whole = QueryStatistics([layer]), anisotropic(layer, 50, 5, batch=2)
    seen.update(0, whole)
    held = [value for value in vars(seen).values() if isinstance(value, list)]
    sizes = [x.numel() for each in held for x in each if isinstance(x, torch.Tensor)]
    assert sum(sizes) == 2 * 4 * 4 + 2 * 4
    found = seen.finish({})
    assert found.directions and found.source["tokens"] == 100
    torch.testing.assert_close(found.directions[0], by_svd(whole)[0], rtol=1e-5, atol=1e-5)


def test_may_finish_more_than_once_and_cross_inference_mode() -> None:
    layer = Layer(2, 1, 4)
    first, second = anisotropic(layer, 9, 0), anisotropic(layer, 9, 0, gap=5.0)
    seen = QueryStatistics([layer])
    with torch.inference_mode():
        seen.update(0, first.clone())
        early = seen.finish({})
    seen.update(0, second.requires_grad_())
    late = seen.finish({})
    assert early.directions and late.directions
    assert not early.filters[0].is_inference() and not late.filters[0].requires_grad
    torch.testing.assert_close(early.directions[0], by_svd(first)[0], rtol=1e-5, atol=1e-5)
    both = torch.cat([first, second.detach()], dim=2)
    torch.testing.assert_close(late.directions[0], by_svd(both)[0], rtol=1e-5, atol=1e-5)


def test_no_tokens_is_an_error_that_names_the_layer() -> None:
    layers = [Layer(2, 1, 4)] * 2
    seen = QueryStatistics(layers)
    seen.update(0, torch.ones(1, 2, 3, 4))
    with pytest.raises(InputError, match="Layer 1 of 2 saw no queries"):
        seen.finish({})
    seen.update(1, torch.ones(1, 2, 0, 4))
    with pytest.raises(InputError, match="Layer 1 of 2 saw no queries"):
        seen.finish({})
    seen.update(1, torch.ones(1, 2, 1, 4))
    assert isinstance(seen.finish({}), QFilters)


def test_queries_that_are_not_finite() -> None:
    seen = QueryStatistics([Layer(1, 1, 2)])
    seen.update(0, torch.tensor([[[[1.0, torch.nan]]]]))
    with pytest.raises(InputError, match="Layer 0 had queries that are not finite"):
        seen.finish({})


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (1, (1, 2, 3, 4), "no layer 1"),
        (-1, (1, 2, 3, 4), "no layer -1"),
        (0, (2, 3, 4), r"\[2, 3, 4\]"),
        (0, (1, 3, 2, 4), r"not \[batch, 2, tokens, 4\]"),
        (0, (1, 2, 3, 5), r"not \[batch, 2, tokens, 4\]"),
    ],
)
def test_wrong_updates(layer: int, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        QueryStatistics([Layer(2, 1, 4)]).update(layer, torch.ones(shape))


def test_heads_that_do_not_divide() -> None:
    with pytest.raises(InputError, match="Layer 0 has 3 query heads for 2"):
        QueryStatistics([Layer(3, 2, 4)])


@pytest.mark.cuda
def test_agrees_with_svd_on_the_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    layer = Layer(8, 2, 128)
    query = anisotropic(layer, 2000, 0)
    seen = QueryStatistics([layer])
    seen.update(0, query.cuda())
    found = seen.finish({}).directions
    assert found is not None and found[0].device.type == "cpu"
    torch.testing.assert_close(found[0], by_svd(query)[0], rtol=1e-5, atol=1e-5)
