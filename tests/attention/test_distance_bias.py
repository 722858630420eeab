"""Biases by distance: computed from positions, and read from the masks that add them."""

import pytest
import torch
from decoders import decoder, masked
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from qfpass.attention.distance_bias import is_distance_bias, read_distance_bias
from qfpass.attention.find import find_attentions
from qfpass.capture.export import capture
from qfpass.kernels.distance_bias import DistanceBias, distance_bias

SLOPES = st.lists(st.floats(-2, 2), min_size=1, max_size=4).map(tuple)


def of_text(bias: DistanceBias, length: int) -> torch.Tensor:
    """[H, S, S]: what this bias adds to the logits of a text."""
    place = torch.arange(length)
    return distance_bias(bias.numbers(), place[None], place[None, None])[0]


@given(SLOPES, st.integers(1, 3))
def test_is_computed_by_query_head(slopes: tuple[float, ...], group: int) -> None:
    bias = DistanceBias(slopes).for_heads(len(slopes) * group) if len(slopes) == 1 else DistanceBias(slopes)
    query, key = torch.tensor([[7, 9]]), torch.tensor([[[0, 4, 8]]])
    wanted = torch.stack([slope * (key - query[..., None])[0].float() for slope in bias.slopes])
    assert_close(distance_bias(bias.numbers(), query, key)[0], wanted)


def test_keys_have_positions_of_their_own_in_each_kv_head() -> None:
    key = torch.tensor([[[0, 1], [5, 6]]])
    found = distance_bias(DistanceBias((1.0, 2.0, 1.0, 2.0)).numbers(), torch.tensor([[6]]), key)
    assert_close(found[0, :, 0], torch.tensor([[-6.0, -5.0], [-12.0, -10.0], [-1.0, 0.0], [-2.0, 0.0]]))


@given(SLOPES, st.integers(2, 40), st.floats(-5, 5))
def test_is_read_from_what_a_mask_adds(slopes: tuple[float, ...], length: int, constant: float) -> None:
    added = of_text(DistanceBias(slopes), length) + constant
    read = read_distance_bias(added, "layers.0")
    assert read is not None
    assert_close(torch.tensor(read.slopes), torch.tensor(slopes), atol=1e-4, rtol=1e-4)
    assert is_distance_bias(added, read, from_nothing=False)
    assert is_distance_bias(added, read, from_nothing=True) == (
        abs(constant) <= 1e-2 * (1 + added.abs().max())
    )


def test_another_bias_is_none_of_these() -> None:
    squared = of_text(DistanceBias((1.0,)), 20) ** 2
    assert not is_distance_bias(squared, read_distance_bias(squared, "layers.0"), from_nothing=False)
    assert not is_distance_bias(squared, None, from_nothing=False)
    assert is_distance_bias(None, None, from_nothing=False)


@pytest.mark.parametrize("hidden", [float("-inf"), torch.finfo(torch.float32).min, -1e9])
def test_a_bias_may_pass_the_numbers_that_hide_keys(hidden: float) -> None:
    """ALiBi's steepest slope passes -1e4 after some 12,000 tokens; a steeper one after 100."""

    def mask_of(positions: torch.Tensor) -> torch.Tensor:
        gap = positions[:, None, :, None] - positions[:, None, None, :]
        return torch.where(gap >= 0, -100.0 * gap, hidden)

    (attention,) = find_attentions(capture(decoder(masked(mask_of), layers=1)), 300)
    assert attention.span.reach is None
    assert attention.form.bias is not None
    assert attention.form.bias.slopes == pytest.approx([100.0] * attention.query_heads)
