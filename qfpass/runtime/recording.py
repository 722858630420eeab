"""Kernels that generated code calls, recorded so that they can be called again on the same memory.

Of a small model's step the Python that Inductor generates around its kernels takes a fifth of the time, and
where every step is the same on the same memory, only the kernels change anything. This is what a CUDA graph
is on a GPU.
"""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ..upstream.generated_code import code_of
from ..upstream.inductor import Generated

_of_thread = threading.local()


def run(generated: Generated, inputs: list[Any]) -> Sequence[Any]:
    """generated(inputs), recorded if this thread is recording."""
    recorded: Recorded | None = getattr(_of_thread, "recorded", None)
    return generated(inputs) if recorded is None else recorded.run(generated, inputs)


class Recorded:
    """A call whose kernels were recorded. It holds the memory that they work on.

    Attributes:
        is_whole: whether all that ran was recorded.
        why_not: what wasn't, None if it is whole.
    """

    def __init__(self, call: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> None:
        self.why_not: str | None = None
        self._kernels: list[Callable[[], object]] = []
        self._inputs = [tensor.clone() for tensor in inputs]
        _of_thread.recorded = self
        try:
            self._outputs = call(*self._inputs)
        finally:
            _of_thread.recorded = None
        if not self._kernels:
            self.why_not = self.why_not or "no generated code ran"
        self.is_whole = self.why_not is None
        if not self.is_whole:
            self._kernels.clear()

    def run(self, generated: Generated, inputs: list[Any]) -> Sequence[Any]:
        """generated(inputs), its kernels recorded if it does nothing else."""
        code = code_of(generated)
        if isinstance(code, str):
            self.why_not = code
            return generated(inputs)
        return code.with_calls(self._noting)(inputs)

    def _noting(self, kernel: Callable[..., Any], gives_out: bool) -> Callable[..., Any]:
        def note(*arguments: Any, **named: Any) -> Any:
            if gives_out and "out" not in named:
                self.why_not = "a product makes its own output"
            self._kernels.append(partial(kernel, *arguments, **named))
            return kernel(*arguments, **named)

        return note

    def first(self) -> Any:
        """What the call gave when it was recorded."""
        return self._outputs

    def replay(self, inputs: Sequence[torch.Tensor]) -> Any:
        """The kernels again, on these inputs."""
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        for kernel in self._kernels:
            kernel()
        return self._outputs
