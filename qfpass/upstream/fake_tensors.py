"""Fake tensors and symbolic sizes."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from .entry import Needed, only_fast
from .modules import parts_of

Run = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""run(operator, args, kwargs) -> the output, called in place of each operator."""


@only_fast("trace_layers_once", plain=lambda value: True)
def has_sizes_of_values(value: Any) -> bool:
    """Whether a traced value has sizes that depend on values in tensors (unbacked), or is such a size.

    Without it: every layer is taken for one that has, and so is traced.
    """
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    return bool(free_unbacked_symbols(value))


@Needed
def mode_of(fake: Any) -> AbstractContextManager[Any]:
    """The mode of a fake tensor: a context in which operators run on such tensors and create new ones.

    Without it: models that use flex_attention are refused.
    """
    mode: AbstractContextManager[Any] = fake.fake_mode
    return mode


class Fakes:
    """A fake tensor mode whose operators also take plain tensors, and which can watch every operator."""

    def __init__(self) -> None:
        from torch._export.utils import _compiling_state_context
        from torch._subclasses import FakeTensor, FakeTensorMode
        from torch.utils._mode_utils import no_dispatch
        from torch.utils._python_dispatch import TorchDispatchMode

        class Watcher(TorchDispatchMode):
            def __init__(self, run: Run) -> None:
                super().__init__()
                self.run = run

            def __torch_dispatch__(
                self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
            ) -> Any:
                return self.run(func, args, kwargs or {})

        self._mode, self._kind = FakeTensorMode(allow_non_fake_inputs=True), FakeTensor
        self._exporting, self._unwatched, self._watcher = _compiling_state_context, no_dispatch, Watcher

    def fake(self, tensor: torch.Tensor) -> torch.Tensor:
        """A fake tensor with the shape, strides, dtype and device of `tensor`."""
        return self._mode.from_tensor(tensor)

    def is_fake(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` is a fake tensor, or consists of fake ones."""
        parts = parts_of(tensor).values()
        return isinstance(tensor, self._kind) or (bool(parts) and all(map(self.is_fake, parts)))

    def device_of(self, tensor: torch.Tensor) -> torch.device:
        """The device of a tensor; reading `tensor.device` of a fake one would run an operator."""
        first = next(iter(parts_of(tensor).values()), tensor)
        return first.fake_device if isinstance(first, self._kind) else first.device

    def numbers_of(self, tensor: torch.Tensor) -> Any:
        """The values of a plain tensor as nested lists, also inside `watched`."""
        with self._unwatched():
            return tensor.tolist()

    @contextmanager
    def watched(self, run: Run) -> Iterator[None]:
        """A context in which modules behave as in torch.export and `run` is called in place of each operator.

        `run` may call the operator on the same tensors.
        """
        with self._exporting(), self._mode, self._watcher(run):
            yield


def _no_fakes() -> Fakes | None:
    return None


@only_fast("capture_cache", plain=_no_fakes)
def fakes() -> Fakes | None:
    """A `Fakes` with which to run a model without its weights' values; None if that doesn't work here.

    Without it: a model has no digest of what it computes, so every layer is traced, in every process.
    """
    made, plain = Fakes(), torch.zeros(1)
    with made.watched(
        lambda operator, args, kwargs: operator(*args, **kwargs)
    ):  # a private part that has changed fails here
        made.device_of(made.fake(plain) + 1)
        made.numbers_of(plain)
    return made
