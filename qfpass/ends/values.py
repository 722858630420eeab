"""Find the nodes of a captured graph that hold values which the original returns."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from ..graph.captured import Captured
from ..proof.rounding import relative_difference, tolerance_of


@torch.no_grad()
def nodes_that_hold(
    captured: Captured, ids: torch.Tensor, positions: torch.Tensor, wanted: Sequence[torch.Tensor]
) -> list[fx.Node | None]:
    """For each wanted tensor the first node whose value is nearest to it when the graph reads ids [B, S].

    None where no value is as near as rounding. A graph runs the original's own operators, most of them in
    the same order, so the right node's value is all but equal.
    """
    finder = _Finder(captured, wanted)
    finder.run(ids, positions)
    return finder.nearest


class _Finder(fx.Interpreter):
    """Runs a graph and compares the value of each node with tensors.

    Attributes:
        nearest: for each tensor the node whose value is nearest.
    """

    def __init__(self, captured: Captured, wanted: Sequence[torch.Tensor]) -> None:
        super().__init__(captured.module)
        self._wanted = wanted
        self.nearest: list[fx.Node | None] = [None] * len(wanted)
        self._differences = [tolerance_of(captured.dtype)] * len(wanted)

    def run_node(self, node: fx.Node) -> Any:
        """The node's value."""
        value = super().run_node(node)
        if isinstance(value, torch.Tensor) and node.op != "output":
            for i, wanted in enumerate(self._wanted):
                if value.shape == wanted.shape and value.is_floating_point() == wanted.is_floating_point():
                    difference = relative_difference(value, wanted)
                    if difference < self._differences[i]:
                        self._differences[i], self.nearest[i] = difference, node
        return value
