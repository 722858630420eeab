"""Weights that compiled code reads where they lie: whether they are still what it was compiled for."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import QFPassError
from ..upstream.modules import counts_of_changes

_PLAIN = (torch.Tensor, nn.Parameter)


def weights_of(module: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers."""
    return [*module.parameters(), *module.buffers()]


def are_plain(weights: Sequence[torch.Tensor]) -> bool:
    """Whether an address tells where all of each lies: not so for quantised or fake tensors."""
    return all(type(weight) in _PLAIN for weight in weights)


def with_weights_checked(call: Callable[..., Any], weights: Sequence[torch.Tensor]) -> Callable[..., Any]:
    """`call`, which is refused if a weight has another dtype, device, shape or layout than now.

    That is looked at where an address has changed, so that an ordinary call compares addresses alone: some
    20 microseconds for 30 layers, where Dynamo's guards take a millisecond. New values are no change. Of
    weights that addresses don't tell apart nothing is asked here.

    Raises:
        QFPassError: from the call.
    """
    if not are_plain(weights):
        return call
    known, addresses = [_form(w) for w in weights], addresses_of(weights)

    def checked(*inputs: Any) -> Any:
        nonlocal addresses
        now = addresses_of(weights)
        if now != addresses:
            _refuse_changed(known, weights)
            addresses = now
        return call(*inputs)

    return checked


def addresses_of(weights: Sequence[torch.Tensor]) -> list[int]:
    """Where each lies."""
    return list(map(torch.Tensor.data_ptr, weights))


def _form(weight: torch.Tensor) -> tuple[Any, ...]:
    return weight.dtype, weight.device, tuple(weight.shape), weight.stride()


def _refuse_changed(known: Sequence[tuple[Any, ...]], weights: Sequence[torch.Tensor]) -> None:
    for before, weight in zip(known, weights, strict=True):
        if (now := _form(weight)) != before:
            was, is_now = (f"{dtype} {list(shape)} on {device}" for dtype, device, shape, _ in (before, now))
            raise QFPassError(
                f"the model's weights have changed since qfpass.compile: one was {was} and is {is_now}. "
                "Compile the model again."
            )


class Copied:
    """Weights of which compiled code reads copies, so that a change of theirs would be lost."""

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        self._weights, self._known = weights, _states(weights)
        self._held = [weight.detach() for weight in weights]  # so that no other memory gets their addresses

    def check(self) -> None:
        """Compare each weight's address and count of changes; what is written to its `.data` isn't seen.

        Raises:
            QFPassError: one has changed.
        """
        if _states(self._weights) != self._known:
            raise QFPassError(
                "the model's weights have changed since qfpass.compile, which keeps copies of them for "
                "compact_weights: compile the model again."
            )


def _states(weights: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
    return list(zip(addresses_of(weights), counts_of_changes(weights), strict=True))
