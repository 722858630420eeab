"""Which layer passes something on outside attention."""

import pytest
import torch
import torch.nn.functional as F
from decoders import Attend, Decoder, causal, decoder
from torch import nn

from qfpass.attention.find import find_attentions
from qfpass.attention.token_mixing import mixing_layer
from qfpass.capture.export import capture
from qfpass.errors import CaptureError


class Shift(nn.Module):
    """Adds the token before."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + F.pad(hidden, (0, 0, 1, 0))[:, :-1]


class Loop(nn.Module):
    """A recurrence written as a loop over tokens."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        state, states = torch.zeros_like(hidden[:, 0]), []
        for token in hidden.unbind(1):
            state = 0.5 * state + token
            states.append(state)
        return torch.stack(states, dim=1)


class Hybrid(Decoder):
    """A decoder with another kind of layer in the middle."""

    def __init__(self, other: nn.Module, attend: Attend = causal) -> None:
        super().__init__(attend, layers=2)
        self.other = other

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.layers[0](self.tokens(input_ids) + self.places(position_ids), position_ids)
        return self.head(self.layers[1](self.other(hidden), position_ids))


def hybrid(other: nn.Module, attend: Attend = causal) -> nn.Module:
    torch.manual_seed(0)
    return Hybrid(other, attend).eval()


def written_out(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """The same as `causal`, by a softmax between two products."""
    key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
    later = positions[:, None, None, :] > positions[:, None, :, None]
    logits = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
    return logits.masked_fill(later, float("-inf")).softmax(-1) @ value


@pytest.mark.parametrize("attend", [causal, written_out])
def test_attention_is_not_taken_for_state(attend: Attend) -> None:
    assert mixing_layer(capture(decoder(attend)).module) is None


@pytest.mark.parametrize("attend", [causal, written_out])
def test_the_first_such_layer_is_named(attend: Attend) -> None:
    captured = capture(hybrid(Shift(), attend))
    assert mixing_layer(captured.module) == "other"
    assert len(find_attentions(captured, 64)) == 2


def test_a_loop_over_tokens_is_named() -> None:
    with pytest.raises(CaptureError, match="Hybrid can't be compiled: other passes information"):
        capture(hybrid(Loop()))


def test_what_works_token_by_token_is_no_state() -> None:
    assert mixing_layer(capture(hybrid(nn.LayerNorm(24))).module) is None
