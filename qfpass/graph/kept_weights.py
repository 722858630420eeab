"""Run a graph many times without widening its quantised weights each time."""

from typing import Any

import torch
from torch import fx

from .nodes import operator_name

DEQUANTISES = "torchao::dequantize_affine"
MOST_KEPT = 2**30  # bytes; weights beyond these are widened in every run


class KeepsWeights(fx.Interpreter):
    """Runs a graph whose quantised weights don't change; what they stand for is kept from the first run.

    `most`: how many bytes are kept.
    """

    def __init__(self, module: fx.GraphModule, most: int = MOST_KEPT) -> None:
        super().__init__(module)
        self._kept, self._left = dict[fx.Node, torch.Tensor](), most

    @torch.no_grad()
    def __call__(self, *inputs: torch.Tensor | None) -> torch.Tensor:
        return self.run(*inputs, enable_io_processing=False)

    def run_node(self, n: fx.Node) -> Any:
        """The value of a node, from an earlier run if it is a weight that was kept."""
        if n in self._kept:
            return self._kept[n]
        value = super().run_node(n)
        if is_quantised_weight(n) and value.nbytes <= self._left:
            self._kept[n], self._left = value, self._left - value.nbytes
        return value


def is_quantised_weight(node: fx.Node) -> bool:
    """Whether a node widens codes that the graph's module holds."""
    return operator_name(node) == DEQUANTISES and all(n.op == "get_attr" for n in node.all_input_nodes)
