"""Steps replayed as CUDA graphs: a step of a small model is hundreds of short kernels, and launching them
one by one takes longer than they run."""

from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import torch

from .stores import Stores
from .weights import addresses_of, are_plain

Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class StepGraphs:
    """One CUDA graph for each session's stores, once a step on them is always the same kernels.

    `weights` are those that a step reads where they lie: one that has moved makes a graph void.
    """

    def __init__(self, weights: Sequence[torch.Tensor]) -> None:
        self._weights = weights
        self._graphs = WeakKeyDictionary[Stores, "_StepGraph | None"]()

    def can_serve(self, device: torch.device) -> bool:
        """Whether steps can be captured at all: on a GPU, for weights that addresses tell apart."""
        return device.type == "cuda" and are_plain(self._weights)

    def run(self, step: Step, stores: Stores, ids: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """step(ids, position), which works on `stores`: called the first time, replayed from then on.

        The call compiles what isn't compiled yet, and stores that live for one step aren't worth a graph.
        """
        addresses = addresses_of(self._weights)
        graph = self._graphs.get(stores)
        if stores not in self._graphs or (graph is not None and graph.addresses != addresses):
            self._graphs[stores] = None
            return step(ids, position)
        if graph is None:
            graph = self._graphs[stores] = _StepGraph(step, ids, position, addresses)
        return graph.replay(ids, position)


class _StepGraph:
    """A captured step; `step`'s other inputs are held by it, so their memory stays where it is."""

    def __init__(
        self, step: Step, ids: torch.Tensor, position: torch.Tensor, addresses: Sequence[int]
    ) -> None:
        self.addresses = addresses
        self._step, self._ids, self._position = step, ids.clone(), position.clone()
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may go on allocating meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._logits = step(self._ids, self._position)

    def replay(self, ids: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """The step on these ids and positions; capturing alone runs nothing."""
        self._ids.copy_(ids)
        self._position.copy_(position)
        self._graph.replay()
        return self._logits.clone()
