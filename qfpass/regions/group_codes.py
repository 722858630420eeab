"""Weights that a graph dequantises from codes, with a scale and a zero for each group of numbers of a row."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import fx

from ..graph.kept_weights import DEQUANTISES
from ..graph.nodes import args_of, operator_name


class GroupCodes(NamedTuple):
    """The held tensors of which a weight [N, K] = (codes - zeros) * scales is made.

    codes [N, K], scales [N, K / G] and zeros [N, K / G]; zeros may be None.
    """

    codes: fx.Node
    scales: fx.Node
    zeros: fx.Node | None

    @property
    def nodes(self) -> list[fx.Node]:
        """Those that there are."""
        return [node for node in self if node is not None]

    def renamed(self, others: Mapping[fx.Node, fx.Node]) -> "GroupCodes":
        """The same of other nodes."""
        return GroupCodes(others[self.codes], others[self.scales], self.zeros and others[self.zeros])


def group_codes(weight: fx.Node) -> GroupCodes | None:
    """What a weight [N, K] is made of, if it is dequantised by groups of its rows; None for any other node.

    This reads torchao's operator.
    """
    if operator_name(weight) != DEQUANTISES or weight.kwargs.keys() - {"output_dtype"}:
        return None
    codes, block, scales, zeros = args_of(weight)[:4]
    found = GroupCodes(codes, scales, zeros)
    is_by_row = len(block) == 2 and block[0] == 1
    return found if is_by_row and all(map(is_held, found.nodes)) else None


def is_held(node: fx.Node) -> bool:
    """Whether a node is a tensor that the graph's module or its caller holds."""
    return node.op in ("placeholder", "get_attr")
