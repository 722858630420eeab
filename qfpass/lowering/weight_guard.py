"""Check that the weights that compiled code reads in place are still those that it was compiled for."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import QFPassError
from ..regions.packed_copy import PackedCopy
from ..upstream.modules import version_counters

_PLAIN = (torch.Tensor, nn.Parameter)


def weights_of(module: nn.Module) -> list[torch.Tensor]:
    """The parameters and buffers of a module and its submodules."""
    return [*module.parameters(), *module.buffers()]


def are_plain(weights: Sequence[torch.Tensor]) -> bool:
    """Whether each is a plain tensor, all of whose data is at its address; quantised and fake ones aren't."""
    return all(type(weight) in _PLAIN for weight in weights)


def with_weights_checked(call: Callable[..., Any], weights: Sequence[torch.Tensor]) -> Callable[..., Any]:
    """`call` with a check that each weight still has the dtype, device, shape and strides that it has now.

    An ordinary call compares addresses only, some 20 microseconds for 30 layers, where Dynamo's guards take a
    millisecond. The rest is compared once an address has changed. New values in a weight are allowed. If a
    weight isn't plain (see `are_plain`), `call` is returned unchanged.

    Raises:
        QFPassError: from the returned function, if a weight has changed.
    """
    if not are_plain(weights):
        return call
    known, addresses = [form_of(w) for w in weights], addresses_of(weights)

    def checked(*inputs: Any) -> Any:
        nonlocal addresses
        now = addresses_of(weights)
        if now != addresses:
            refuse_other_forms(known, weights)
            addresses = now
        return call(*inputs)

    return checked


def addresses_of(weights: Sequence[torch.Tensor]) -> list[int]:
    """The memory address of each weight's data."""
    return list(map(torch.Tensor.data_ptr, weights))


def form_of(weight: torch.Tensor) -> tuple[Any, ...]:
    """A weight's dtype, device, shape and strides."""
    return weight.dtype, weight.device, tuple(weight.shape), weight.stride()


def refuse_other_forms(known: Sequence[tuple[Any, ...]], weights: Sequence[torch.Tensor]) -> None:
    """Raise QFPassError if a weight's form (see `form_of`) isn't the known one."""
    for before, weight in zip(known, weights, strict=True):
        if (now := form_of(weight)) != before:
            was, is_now = (f"{dtype} {list(shape)} on {device}" for dtype, device, shape, _ in (before, now))
            raise QFPassError(
                f"the model's weights have changed since qfpass.compile: one was {was} and is {is_now}. "
                "Compile the model again."
            )


def read_by_steps(weights: Sequence[torch.Tensor], copies: Sequence[PackedCopy]) -> list[torch.Tensor]:
    """Those of the weights that a step reads where the model keeps them: no packed copies, no copied ones."""
    others = {id(tensor) for copy in copies for tensor in (*copy.made, *copy.unread)}
    return [weight for weight in weights if id(weight) not in others]


class PackedWeights:
    """Weights of which compiled code reads packed copies: these are written anew after a change."""

    def __init__(self, copies: Sequence[PackedCopy]) -> None:
        self._copies = [copy for copy in copies if copy.unread]
        # Parts that compiled code reads in place are up to date by themselves.
        self._weights = [part for copy in self._copies for part in copy.unread]
        self._known = _states(self._weights)
        # Keeps the weights' memory allocated, so that no other tensor gets one of their addresses.
        self._held = [weight.detach() for weight in self._weights]

    def follow_changes(self) -> None:
        """Renew the copies if a weight's address or version counter is another.

        Raises:
            QFPassError: the weights no longer have the form of their copies.
        """
        now = _states(self._weights)
        if now != self._known:
            for copy in self._copies:
                copy.renew()
            self._known, self._held = now, [weight.detach() for weight in self._weights]


def _states(weights: Sequence[torch.Tensor]) -> tuple[list[int], list[int]]:
    return addresses_of(weights), version_counters(weights)
