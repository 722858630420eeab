"""Record the CPU kernels that Inductor's generated code calls, and call them again on the same memory.

The Python that Inductor generates around its kernels takes a fifth of a small model's step. Where every step
works on the same memory, calling the kernels alone is enough, as a CUDA graph does on a GPU.
"""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ..upstream.generated_code import code_of
from ..upstream.inductor import Generated

_thread_local = threading.local()


def run_and_record(generated: Generated, inputs: list[Any]) -> Sequence[Any]:
    """The outputs of generated(inputs), whose kernels are recorded if this thread is recording."""
    recorded: RecordedKernels | None = getattr(_thread_local, "recorded", None)
    return generated(inputs) if recorded is None else recorded.run(generated, inputs)


class RecordedKernels:
    """A call that ran once, on copies of `inputs`, while its kernels were recorded.

    It holds the memory that the kernels work on.

    Attributes:
        is_replayable: whether everything that ran was recorded; only then may it be replayed.
        why_not: what could not be recorded; None if `is_replayable`.
    """

    def __init__(self, call: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> None:
        self.why_not: str | None = None
        self._kernels: list[Callable[[], object]] = []
        self._inputs = [tensor.clone() for tensor in inputs]
        _thread_local.recorded = self
        try:
            self._outputs = call(*self._inputs)
        finally:
            _thread_local.recorded = None
        if not self._kernels:
            self.why_not = self.why_not or "no generated code ran"
        self.is_replayable = self.why_not is None
        if not self.is_replayable:
            self._kernels.clear()

    def run(self, generated: Generated, inputs: list[Any]) -> Sequence[Any]:
        """The outputs of generated(inputs); its kernels are recorded if it does nothing but call kernels."""
        code = code_of(generated)
        if isinstance(code, str):
            self.why_not = code
            return generated(inputs)
        return code.with_calls(self._recording)(inputs)

    def _recording(self, kernel: Callable[..., Any], gives_out: bool) -> Callable[..., Any]:
        """`kernel` as a function that also records each call; `gives_out` if it must write to `out=`."""

        def record(*arguments: Any, **named: Any) -> Any:
            if gives_out and "out" not in named:
                self.why_not = "a product makes its own output"
            self._kernels.append(partial(kernel, *arguments, **named))
            return kernel(*arguments, **named)

        return record

    def first(self) -> Any:
        """The outputs of the recorded call; the next replay overwrites them."""
        return self._outputs

    def replay(self, inputs: Sequence[torch.Tensor]) -> Any:
        """The outputs for these inputs, which are copied in; the next replay overwrites them."""
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        for kernel in self._kernels:
            kernel()
        return self._outputs
