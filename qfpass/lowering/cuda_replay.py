"""A call captured as a CUDA graph."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..errors import QFPassError
from ..upstream import cublas


class CudaGraph:
    """A CUDA graph of `call`, captured on copies of `inputs`.

    It holds `call`, so that the memory that the graph reads stays allocated.

    Raises:
        QFPassError: something in the call can't be captured.
    """

    is_replayable = True
    why_not: str | None = None

    def __init__(self, call: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> None:
        self._call, self._inputs = call, [tensor.clone() for tensor in inputs]
        self._graph = torch.cuda.CUDAGraph()
        # The graph keeps the addresses of its products' scratch memory, so it needs a block of its own: one
        # that is there already belongs to another graph, or is freed whenever someone frees the workspaces.
        # torch.compile's CUDA graphs do the same, so no graph can count on a block that it doesn't own.
        cublas.free_workspaces()
        try:
            # thread_local: other threads may allocate memory during the capture.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._outputs = call(*self._inputs)
        except RuntimeError as error:  # CUDA raises it for any operation that can't be captured
            raise QFPassError(
                f"a step can't be captured as a CUDA graph: {str(error).splitlines()[0]}. Compile with "
                'compile_options={"options": {"triton.cudagraphs": False}} to launch its kernels one by one.'
            ) from error
        finally:
            cublas.free_workspaces()

    def first(self) -> Any:
        """The outputs for the captured inputs; the capture itself ran no kernel. Overwritten by the next."""
        self._graph.replay()
        return self._outputs

    def replay(self, inputs: Sequence[torch.Tensor]) -> Any:
        """The outputs for these inputs, which are copied in; the next replay overwrites them."""
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        return self.first()
