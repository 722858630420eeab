"""Trace linears of quantisation libraries as products of plain tensors; see `library_linears`.

Inside `plain_linears`, such a linear holds its codes and scales as buffers in the same memory and computes
with them in plain torch, so that they are weights like others, which equal layers take as operands.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..errors import CaptureError
from ..graph.captured import device_and_dtype
from ..graph.tracing import TRACING, without_autocast
from ..upstream.entry import describe
from ..upstream.modules import weight_stores
from .equal_layers import forwards_replaced
from .library_linears import PlainLinear, is_library_linear, library_of, plain_linear, state_of

CURE = "Load the model unquantised, or as docs/quantised_weights.md says."
MOST_ROUNDING = 0.02  # of a product whose input a library rounds to eight bits: 0.004

# The same tensors stand for the same weights in every call, so that it is known which a graph reads.
_known: WeakKeyDictionary[nn.Module, tuple[list[int], PlainLinear]] = WeakKeyDictionary()


@contextmanager
def as_compiled(model: nn.Module) -> Iterator[None]:
    """Inside, `model` computes as it is compiled: without autocast, libraries' linears in plain torch."""
    with without_autocast(model), plain_linears(model):
        yield


@contextmanager
def plain_linears(model: nn.Module) -> Iterator[None]:
    """Inside, the libraries' linears in `model` compute in plain torch; other threads that trace wait."""
    if not any(map(is_library_linear, model.modules())):
        yield
        return
    with TRACING, _replaced(model):
        yield


@contextmanager
def _replaced(model: nn.Module) -> Iterator[None]:
    found = {path: (module, plain) for path, module in model.named_modules() if (plain := _plain(module))}
    modules = {path: module for path, (module, _) in found.items()}
    with ExitStack() as stack:
        for module, plain in found.values():
            parameters, buffers = weight_stores(module)
            for store in (parameters, buffers):
                stack.callback(_put_back, store, dict(store))
            if plain.tensors:
                parameters.pop("weight", None)
                buffers |= plain.tensors
        stack.enter_context(
            forwards_replaced(modules, lambda path, own: partial(found[path][1].forward, modules[path]))
        )
        yield


class HeldCodes:
    """Where codes and scales of the libraries' linears in a model lie, to find out if any was replaced."""

    def __init__(self, model: nn.Module) -> None:
        self._linears = {path: m for path, m in model.named_modules() if is_library_linear(m)}
        self._then = self._now()
        objects = [each for module in self._linears.values() for each in state_of(module)]
        self._held = [vars(each) for each in objects]
        self._held_then = [dict(held) for held in self._held]
        self._weights = [each for each in objects if isinstance(each, torch.Tensor)]
        self._places_then = [weight.data_ptr() for weight in self._weights]

    def differences(self) -> list[str]:
        """The paths of the linears whose codes or scales are other tensors than they were."""
        if self._is_untouched():
            return []
        return [path for path, places in self._now().items() if places != self._then[path]]

    def _is_untouched(self) -> bool:
        """Whether no object that holds codes was written to: much faster than to read them, in each call."""
        try:
            held = self._held == self._held_then
        except Exception:  # comparing tensors may raise anything
            return False
        return held and [weight.data_ptr() for weight in self._weights] == self._places_then

    def _now(self) -> dict[str, list[int] | None]:
        return {path: _places(plain_linear(module)) for path, module in self._linears.items()}


def _places(plain: PlainLinear | None) -> list[int] | None:
    return None if plain is None else [tensor.data_ptr() for tensor in plain.tensors.values()]


def reads_parts_of_weights(model: nn.Module) -> bool:
    """Whether `plain_linears` puts tensors into `model` that aren't parameters or buffers of its own."""
    return any((plain := _plain(module)) is not None and plain.tensors for module in model.modules())


def _put_back(store: dict[str, Any], before: dict[str, Any]) -> None:
    store.clear()
    store.update(before)


def _plain(module: nn.Module) -> PlainLinear | None:
    plain = plain_linear(module)
    places = _places(plain)
    if plain is None or places is None:
        return None
    known = _known.get(module)
    if known is None or known[0] != places:
        known = _known[module] = places, plain
    return known[1]


@torch.no_grad()
def require_alike(model: nn.Module) -> None:
    """Raise unless each library's linear gives, in plain torch, what it gives by itself.

    A library may order its weights anew in the first call of its own; that call is made here.

    Raises:
        CaptureError: one gives something else or can't be called; the message names it.
    """
    for path, module in model.named_modules():
        if _plain(module) is None:
            continue
        device, dtype = device_and_dtype(model)
        generator = torch.Generator().manual_seed(0)
        x = torch.rand(1, 4, int(module.in_features), generator=generator) * 2 - 1
        x = x.to(device, dtype)
        where = f"{type(model).__name__} has a linear of {library_of(module)}, {path}, that"
        try:
            own = module(x).float()
            with plain_linears(module):
                plain = module(x).float()
        except Exception as error:  # a library's kernel may raise anything
            raise CaptureError(f"{where} doesn't run on random numbers: {describe(error)}. {CURE}") from error
        if not float((own - plain).norm()) <= MOST_ROUNDING * float(own.norm()):
            raise CaptureError(
                f"{where} doesn't compute what qfpass expects of it: qfpass doesn't know this version of the "
                f"library. {CURE}"
            )
