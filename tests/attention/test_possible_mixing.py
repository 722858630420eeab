"""Operators that pass something between tokens for rare ids, which the ids of a proof may not be."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from decoders import VOCABULARY, Decoder, decoder, places, text
from torch import nn

import qfpass
from qfpass.attention.possible_mixing import mixes, possible_mixing, surely_mixes
from qfpass.attention.token_mixing import mixing_layer
from qfpass.capture.export import capture
from qfpass.errors import VerificationError

RARE = 47
Flag = Callable[[torch.Tensor], torch.Tensor]
"""ids [B, S] -> what hidden values [B, S, E] are multiplied by."""

FLAGS: dict[str, Flag] = {
    "a count": lambda ids: 1 + (ids == RARE).cumsum(1)[..., None],
    "once seen": lambda ids: 1 + (ids == RARE).float().cummax(1).values[..., None],
    "seen anywhere": lambda ids: torch.where((ids == RARE).any(1, keepdim=True), 2.0, 1.0)[..., None],
    "after it": lambda ids: torch.where(F.pad(ids, (1, 0))[:, :-1] == RARE, 2.0, 1.0)[..., None],
    "near it": lambda ids: 1 + F.avg_pool1d((ids == RARE).float(), 3, stride=1, padding=1)[..., None],
    "seen thrice": lambda ids: torch.where((ids == RARE).cumsum(1) > 2, 2.0, 1.0)[..., None],
    "the largest id": lambda ids: torch.where(ids.amax(1, keepdim=True) == RARE, 2.0, 1.0)[..., None],
    "after it, as a number": lambda ids: 1 + F.pad((ids == RARE).float(), (1, 0))[:, :-1, None],
}  # fmt: skip


class Flagged(Decoder):
    """A decoder whose first hidden values are multiplied by a flag of the ids."""

    def __init__(self, flag: Flag) -> None:
        super().__init__()
        self.flag = flag

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(input_ids) + self.places(position_ids)
        hidden = hidden * self.flag(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, position_ids)
        return self.head(self.norm(hidden))


def flagged(flag: Flag) -> nn.Module:
    torch.manual_seed(0)
    return Flagged(flag).eval()


class Experts(nn.Module):
    """Each token goes to one expert; tokens are sorted by expert, and sorted back."""

    def __init__(self) -> None:
        super().__init__()
        self.route, self.experts = nn.Linear(24, 3), nn.Parameter(torch.randn(3, 24, 24) / 5)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        chosen = self.route(flat).argmax(-1)
        order = chosen.argsort()
        out = torch.einsum("te,tef->tf", flat[order], self.experts[chosen[order]])
        return hidden + torch.zeros_like(flat).index_copy(0, order, out).view_as(hidden)


class WithExtra(Decoder):
    """A decoder with one more layer, which reads hidden values alone."""

    def __init__(self, extra: nn.Module) -> None:
        super().__init__()
        self.layers.append(Alone(extra))


class Alone(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden)


@pytest.mark.parametrize("flag", FLAGS.values(), ids=FLAGS)
def test_what_rare_ids_pass_on_is_refused_by_name(flag: Flag) -> None:
    assert VOCABULARY > RARE
    model = flagged(flag)
    assert mixing_layer(capture(model).module) is None  # none of its ids is rare
    with pytest.raises(VerificationError, match=r"Flagged can't be compiled: .* at least for some ids"):
        qfpass.compile(model, context_length=64, backend="eager")


class InPieces(nn.Module):
    """A linear that reads five tokens at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 24)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.linear(hidden[:, :5]), self.linear(hidden[:, 5:])], dim=1)


@pytest.mark.parametrize("batch", [None, 1])
def test_experts_that_sort_tokens_pass_nothing_on(batch: int | None) -> None:
    """With one row, sorted tokens are as many as the text has."""
    torch.manual_seed(0)
    assert possible_mixing(capture(WithExtra(Experts()).eval(), batch).module) == []


def test_what_is_moved_back_passes_nothing_on() -> None:
    torch.manual_seed(0)
    module = capture(WithExtra(InPieces()).eval()).module
    found = possible_mixing(module)
    assert found and not any(surely_mixes(module, node) or mixes(module, node) for node in found)


@torch.no_grad()
def test_what_each_token_does_by_itself_is_not_refused() -> None:
    model, ids = flagged(lambda ids: torch.where(ids == RARE, 2.0, 1.0)[..., None]), text(40)
    ids[0, 20] = RARE
    compiled = qfpass.compile(model, context_length=64, chunk=7, backend="eager")
    torch.testing.assert_close(compiled(ids), model(ids, places(ids)), atol=1e-4, rtol=1e-4)


def test_a_plain_decoder_has_none() -> None:
    assert possible_mixing(capture(decoder()).module) == []
