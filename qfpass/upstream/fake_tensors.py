"""Fake tensors, which have a form and no numbers, and sizes that are symbols."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from .entry import Needed, only_fast
from .settings import as_it_is, set_meanwhile

Run = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]
"""run(operator, args, kwargs): what is to run in the place of an operator."""


@only_fast("lean_tracing", plain=as_it_is)
def without_fake_results_kept() -> AbstractContextManager[Any]:
    """Inside, what operators give for fake tensors isn't kept for calls alike.

    Where sizes are symbols, finding out whether it may be takes longer than running them: a third of the
    time in which Dynamo traces a layer.

    Without it: Dynamo takes that time.
    """
    import torch._dynamo

    return set_meanwhile(torch._dynamo.config, "fake_tensor_cache_enabled", False)


@only_fast("trace_layers_once", plain=lambda value: True)
def has_sizes_of_values(value: Any) -> bool:
    """Whether a traced value has sizes that depend on the numbers in tensors, or is such a size.

    Without it: every layer is taken for one that has, and so is traced.
    """
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    return bool(free_unbacked_symbols(value))


@Needed
def mode_of(fake: Any) -> AbstractContextManager[Any]:
    """What makes operators run on fake tensors such as this one, new ones among them.

    Without it: models that use flex_attention are refused.
    """
    mode: AbstractContextManager[Any] = fake.fake_mode
    return mode


class Fakes:
    """Fake tensors of one kind; plain ones may be read beside them."""

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
        """One of the same form."""
        return self._mode.from_tensor(tensor)

    def is_fake(self, tensor: torch.Tensor) -> bool:
        return isinstance(tensor, self._kind)

    def device_of(self, tensor: torch.Tensor) -> torch.device:
        """Asking a fake tensor itself runs an operator."""
        return tensor.fake_device if isinstance(tensor, self._kind) else tensor.device

    def numbers_of(self, tensor: torch.Tensor) -> Any:
        """Of a plain tensor, as nested lists; in the midst of fake ones too."""
        with self._unwatched():
            return tensor.tolist()

    @contextmanager
    def watched(self, run: Run) -> Iterator[None]:
        """Inside, modules run as while they are exported, and `run` stands in every operator's place.

        It may run that operator, on these tensors.
        """
        with self._exporting(), self._mode, self._watcher(run):
            yield


def _no_fakes() -> Fakes | None:
    return None


@only_fast("capture_cache", plain=_no_fakes)
def fakes() -> Fakes | None:
    """To see what a model does without its numbers.

    Without it: there is no identity of a model, so every layer is traced, in every process.
    """
    made, plain = Fakes(), torch.zeros(1)
    with made.watched(
        lambda operator, args, kwargs: operator(*args, **kwargs)
    ):  # what has changed, fails now
        made.device_of(made.fake(plain) + 1)
        made.numbers_of(plain)
    return made
