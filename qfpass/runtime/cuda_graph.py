"""Calls replayed as CUDA graphs: a step of a small model is hundreds of short kernels, and launching them
one by one takes longer than they run."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch

from ..errors import QFPassError
from .stores import Stores
from .weights import addresses_of, are_plain

Call = Callable[..., Any]
OPTION = "triton.cudagraphs"  # of Inductor


class CudaGraphs:
    """A CUDA graph for each kind of call on a session's stores that is always the same kernels.

    `weights` are those that calls read where they lie: one that has moved makes the graphs void. There are
    graphs on a GPU only, for weights that addresses tell apart, and unless Inductor's own option says no;
    elsewhere calls are just made.
    """

    def __init__(
        self, device: torch.device, weights: Sequence[torch.Tensor], options: Mapping[str, Any]
    ) -> None:
        self._weights = weights
        self._are_possible = device.type == "cuda" and are_plain(weights) and options.get(OPTION, True)
        self._of_stores = WeakKeyDictionary[Stores, _OfStores]()

    def run(self, kind: str, prepare: Callable[[], Call], stores: Stores, *inputs: torch.Tensor) -> Any:
        """prepare()(*inputs), which works on `stores`: made the first time, replayed from then on.

        The first call compiles what isn't compiled yet, and stores that live for one step aren't worth a
        graph. What comes back is overwritten by the next call of its kind.

        Raises:
            QFPassError: something in the call can't be captured.
        """
        if not self._are_possible:
            return prepare()(*inputs)
        addresses = addresses_of(self._weights)
        known = self._of_stores.get(stores)
        if known is None or known.addresses != addresses:
            known = self._of_stores[stores] = _OfStores(addresses)
        if kind not in known.graphs:
            known.graphs[kind] = None
            return prepare()(*inputs)
        graph = known.graphs[kind]
        if graph is None:
            graph = known.graphs[kind] = _captured(prepare(), inputs)
        return graph.replay(inputs)

    def __len__(self) -> int:
        return sum(graph is not None for known in self._of_stores.values() for graph in known.graphs.values())


class _OfStores:
    """The graphs on one session's stores, by kind; None for one that has been called once."""

    def __init__(self, addresses: Sequence[int]) -> None:
        self.addresses, self.graphs = addresses, dict[str, "_Graph | None"]()


def _captured(call: Call, inputs: Sequence[torch.Tensor]) -> "_Graph":
    try:
        return _Graph(call, inputs)
    except RuntimeError as error:  # CUDA's, of whatever the model does
        raise QFPassError(
            f"a step can't be captured as a CUDA graph: {str(error).splitlines()[0]}. Compile with "
            f'compile_options={{"options": {{"{OPTION}": False}}}} to launch its kernels one by one.'
        ) from error


class _Graph:
    """A captured call. It holds the call, and so the memory of all that the call reads."""

    def __init__(self, call: Call, inputs: Sequence[torch.Tensor]) -> None:
        self._call, self._inputs = call, [tensor.clone() for tensor in inputs]
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may go on allocating meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._outputs = call(*self._inputs)

    def replay(self, inputs: Sequence[torch.Tensor]) -> Any:
        """The call on these inputs; capturing alone runs nothing."""
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given)
        self._graph.replay()
        return self._outputs
