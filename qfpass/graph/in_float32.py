"""A graph computed in float32 whatever its model's dtype: what it means, without that dtype's rounding."""

from typing import Any

import torch
from torch import fx

from ..upstream.modules import parts_of

HALF = (torch.bfloat16, torch.float16)


def can_be_widened(module: fx.GraphModule) -> bool:
    """Whether all of its weights are plain tensors."""
    return not any(parts_of(weight) for weight in (*module.parameters(), *module.buffers()))


class InFloat32(fx.Interpreter):
    """Runs a graph of half precision in float32, a weight at a time; as it is, if told so."""

    def __init__(self, module: fx.GraphModule, as_it_is: bool = False) -> None:
        super().__init__(module)
        self._as_it_is = as_it_is

    @torch.no_grad()
    def __call__(self, *inputs: torch.Tensor | None) -> torch.Tensor:
        return self.run(*inputs, enable_io_processing=False)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """What the module holds, widened."""
        held = super().get_attr(target, args, kwargs)
        return held if self._as_it_is else _wide(held)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """As it is called, but for the dtypes that it is asked for."""
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
