"""Joining two attentions must be attention over the keys of both."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from qfpass.kernels import reference
from qfpass.kernels.join import join

NOTHING = float("-inf")


def sides(first: int, second: int, seed: int) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """A query [2, 4, 5, 8] and two sets of keys and values."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(2, 4, 5, 8, generator=generator)
    keys = [
        (
            torch.randn(2, 2, length, 8, generator=generator) * 3,
            torch.randn(2, 2, length, 6, generator=generator),
        )
        for length in (first, second)
    ]
    return query, keys


@given(first=st.integers(1, 20), second=st.integers(1, 20), seed=st.integers(0, 1000))
def test_equals_attention_over_concatenated_keys(first: int, second: int, seed: int) -> None:
    query, (a, b) = sides(first, second, seed)
    part_a, part_b = (reference.attend(query, k, v, scale=0.5) for k, v in (a, b))
    both = [torch.cat(pair, dim=2) for pair in zip(a, b, strict=True)]
    wanted_out, wanted_lse = reference.attend(query, *both, scale=0.5)
    out, lse = join(*part_a, *part_b)
    torch.testing.assert_close(out, wanted_out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(lse, wanted_lse, atol=1e-5, rtol=1e-5)


def test_a_side_of_minus_infinity_counts_for_nothing() -> None:
    query, (a, _) = sides(7, 1, seed=0)
    out, lse = reference.attend(query, *a, scale=0.5)
    junk, none = torch.full_like(out, 1e30), torch.full_like(lse, NOTHING)
    for joined_out, joined_lse in (join(out, lse, junk, none), join(junk, none, out, lse)):
        torch.testing.assert_close(joined_out, out)
        torch.testing.assert_close(joined_lse, lse)


def test_two_empty_sides_give_zero() -> None:
    out, none = torch.ones(1, 2, 3, 4), torch.full((1, 2, 3), NOTHING)
    joined_out, joined_lse = join(out, none, out, none)
    assert torch.equal(joined_out, torch.zeros_like(out))
    assert torch.equal(joined_lse, none)


def test_large_lse_does_not_overflow() -> None:
    ones, lse = torch.ones(1, 1, 1, 2), torch.full((1, 1, 1), 500.0)
    out, joined = join(ones, lse, 3 * ones, lse)
    torch.testing.assert_close(out, 2 * ones)
    torch.testing.assert_close(joined, lse + torch.tensor(2.0).log())


def test_dtype_is_the_first_sides() -> None:
    half, lse = torch.ones(1, 1, 1, 2, dtype=torch.bfloat16), torch.zeros(1, 1, 1)
    out, joined = join(half, lse, half, lse)
    assert out.dtype == torch.bfloat16
    assert joined.dtype == torch.float32


def test_empty_sides_compile_to_the_same() -> None:
    """Inductor writes its own logaddexp, which has to keep -inf and -inf from becoming NaN."""
    generator = torch.Generator().manual_seed(0)
    outs = [torch.randn(1, 2, 4, 8, generator=generator) for _ in range(2)]
    lse_a = torch.tensor([0.5, NOTHING, 0.5, NOTHING]).expand(1, 2, 4)
    lse_b = torch.tensor([1.5, 1.5, NOTHING, NOTHING]).expand(1, 2, 4)
    operands = (outs[0], lse_a, outs[1], lse_b)
    torch.testing.assert_close(torch.compile(join, fullgraph=True)(*operands), join(*operands))
