"""A call captured as a CUDA graph."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..errors import QFPassError


class CudaGraph:
    """A captured call. It holds the call, and so the memory of all that the call reads.

    Raises:
        QFPassError: something in the call can't be captured.
    """

    is_whole = True
    why_not: str | None = None

    def __init__(self, call: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> None:
        self._call, self._inputs = call, [tensor.clone() for tensor in inputs]
        self._graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may go on allocating meanwhile.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._outputs = call(*self._inputs)
        except RuntimeError as error:  # CUDA's, of whatever the model does
            raise QFPassError(
                f"a step can't be captured as a CUDA graph: {str(error).splitlines()[0]}. Compile with "
                'compile_options={"options": {"triton.cudagraphs": False}} to launch its kernels one by one.'
            ) from error

    def first(self) -> Any:
        """The call on the inputs that it was captured with; capturing alone runs nothing."""
        self._graph.replay()
        return self._outputs

    def replay(self, inputs: Sequence[torch.Tensor]) -> Any:
        """The call on these inputs."""
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        return self.first()
