"""Forwards that write buffers: values of the call are followed, states that go from call to call refused."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from decoders import Decoder, text

import qfpass
from qfpass.errors import CaptureError, VerificationError

TOKENS = 30
Write = Callable[["Writes", torch.Tensor, torch.Tensor], torch.Tensor]


class Writes(Decoder):
    """Changes its hidden values [B, S, E] by something of the test's choice, which may write a buffer."""

    def __init__(self, write: Write) -> None:
        super().__init__()
        self.write = write
        self.register_buffer("number", torch.ones(()))
        self.register_buffer("row", torch.ones(24))
        self.register_buffer("cache", torch.zeros(64, 24))

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """See the class."""
        hidden = self.write(self, self.tokens(input_ids) + self.places(position_ids), position_ids)
        for layer in self.layers:
            hidden = layer(hidden, position_ids)
        return self.head(self.norm(hidden))


def writes(write: Write) -> Writes:
    torch.manual_seed(0)
    return Writes(write).eval()


def a_value_of_the_call(model: Writes, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    model.row.copy_(torch.where(positions.max() > 20, 2.0, 1.0))
    return hidden * model.row


def a_count_that_nobody_reads(model: Writes, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    model.number.add_(1)
    return hidden


def a_count_of_calls(model: Writes, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    model.number.add_(1)
    return hidden * model.number


def a_factor_that_grows(model: Writes, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    model.row = model.row * 1.1
    return hidden * model.row


def a_number_that_grows(model: Writes, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    model.calls = getattr(model, "calls", 0) + 1
    return hidden * model.calls


def chance(model: Writes, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return hidden + torch.randn_like(hidden)


def a_cache_of_its_own(model: Writes, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    model.cache[positions[0]] = hidden[0]
    return hidden + model.cache[positions]


def a_view_of_a_buffer(model: Writes, hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    model.row[:12].mul_(1.1)
    return hidden * model.row


@pytest.mark.parametrize("write", [a_value_of_the_call, a_count_that_nobody_reads])
@torch.no_grad()
def test_values_of_the_call_are_followed(write: Write) -> None:
    model, ids = writes(write), text(TOKENS, batch=2)
    compiled: Any = qfpass.compile(model, ratio=1, context_length=64, chunk=9, backend="eager")
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    actual = compiled(ids)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, before[name], msg=f"the compiled model wrote {name}")
    torch.testing.assert_close(actual, model(ids, torch.arange(TOKENS).expand(2, -1)), atol=1e-4, rtol=1e-4)
    session = compiled.session()
    parts = [compiled(ids[:, a:b], cache=session) for a, b in pairwise((0, 9, 10, 20))]
    expected = model(ids[:, :20], torch.arange(20).expand(2, -1))
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("write", "buffer"),
    [
        (a_count_of_calls, "number"),
        (a_cache_of_its_own, "cache"),
        (a_view_of_a_buffer, "row"),
    ],
)
def test_states_are_refused_by_name(write: Write, buffer: str) -> None:
    with pytest.raises(CaptureError, match=f"writes .*{buffer} while it reads"):
        qfpass.compile(writes(write), ratio=1, context_length=64, backend="eager")


@pytest.mark.parametrize(
    ("write", "changed"),
    [(a_factor_that_grows, "row"), (a_number_that_grows, "calls"), (chance, "as if by chance")],
)
def test_what_differs_from_call_to_call_is_refused(write: Write, changed: str) -> None:
    with pytest.raises(VerificationError, match=f"called again.*{changed}"):
        qfpass.compile(writes(write), ratio=1, context_length=64, backend="eager")
