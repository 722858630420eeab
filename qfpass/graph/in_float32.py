"""Run the graph of a half-precision model in float32, to get its result without the rounding of its dtype."""

from typing import Any

import torch
from torch import fx

from ..upstream.modules import parts_of
from .kept_weights import MOST_KEPT, KeepsWeights

HALF = (torch.bfloat16, torch.float16)


def can_be_widened(module: fx.GraphModule) -> bool:
    """Whether `InFloat32` can run a module: whether all of its weights are plain tensors."""
    return not any(parts_of(weight) for weight in (*module.parameters(), *module.buffers()))


class InFloat32(KeepsWeights):
    """Runs a graph with float32 in the place of bfloat16 and float16.

    Each weight is cast when a node reads it, so there is no float32 copy of the whole model. `as_it_is`: run
    the graph in its own dtype.
    """

    def __init__(self, module: fx.GraphModule, as_it_is: bool = False, most: int = MOST_KEPT) -> None:
        super().__init__(module, most)
        self._as_it_is = as_it_is

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The module's attribute `target`, cast to float32 if it is a tensor in half precision."""
        held = super().get_attr(target, args, kwargs)
        return held if self._as_it_is else _wide(held)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The result of `target` with tensors and dtypes of half precision replaced by float32."""
        return super().call_function(
            target, *((args, kwargs) if self._as_it_is else _widened((args, kwargs)))
        )


def _widened(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_widened(each) for each in value)
    if isinstance(value, dict):
        return {name: _widened(each) for name, each in value.items()}
    return torch.float32 if value in HALF else value if not isinstance(value, torch.Tensor) else _wide(value)


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and value.dtype in HALF else value
