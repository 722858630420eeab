"""What a graph computes from positions and sizes alone, to be run on texts of our choice."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx

from ..upstream.entry import describe
from .dependence import SHAPE_ONLY, cut_out, dependent, whole_numbers

aten = torch.ops.aten


def by_place_alone(graph: fx.Graph, position: fx.Node, call_end: fx.Node) -> set[fx.Node]:
    """What depends on positions and on how many tokens there are, and on nothing else that is given."""
    given = {n for n in graph.nodes if n.op == "placeholder"} - {position, call_end}
    others = dependent(graph, given, SHAPE_ONLY)
    return {n for n in graph.nodes if n not in others and n.op not in ("get_attr", "output")}


class CannotRunError(Exception):
    """A node doesn't take a text of this length; says why."""

    def __init__(self, node: fx.Node, reason: str) -> None:
        super().__init__(reason)
        self.node, self.reason = node, reason


class PlaceProgram(fx.Interpreter):
    """Nodes of a graph that depend on places alone, run for one row of tokens.

    Or for as many rows as the graph is made for, if that is fixed.

    Attributes:
        numbers: the whole numbers that they are made with.
    """

    def __init__(self, module: fx.GraphModule, nodes: Sequence[fx.Node]) -> None:
        super().__init__(cut_out(module, nodes))
        self.numbers = whole_numbers(self.module)
        self._inputs = [n.name for n in module.graph.nodes if n.op == "placeholder"]
        ids = next(n for n in module.graph.nodes if n.op == "placeholder").meta["val"]
        self.rows = ids.shape[0] if isinstance(ids.shape[0], int) else 1
        self._device = ids.device

    @torch.no_grad()
    def values(self, tokens: int, first: int, call_end: int) -> tuple[Any, ...]:
        """What the nodes hold for `tokens` tokens from position `first`.

        Raises:
            CannotRunError: one of them doesn't take that.
        """
        position = torch.arange(first, first + tokens, device=self._device).expand(self.rows, -1)
        given = {
            "input_ids": torch.zeros_like(position),
            "position_ids": position.contiguous(),
            "call_end": torch.tensor(call_end, device=self._device),
        }
        return self.run(*(given.get(name) for name in self._inputs), enable_io_processing=False)

    def run_node(self, node: fx.Node) -> Any:
        """As it is, but for a look past the end of a table, which a GPU wouldn't survive."""
        args, _ = self.fetch_args_kwargs_from_env(node)
        for size, places in _lookups(node, args):
            if places.numel() and int(places.max()) >= size:
                raise CannotRunError(node, f"a table ends there, which has {size} rows")
        try:
            return super().run_node(node)
        except (RuntimeError, IndexError) as error:
            raise CannotRunError(node, describe(error)) from error


def _lookups(node: fx.Node, args: Sequence[Any]) -> Iterator[tuple[int, torch.Tensor]]:
    """Rows of each table that a node takes rows of, and which it takes."""
    if node.target is aten.embedding.default:
        yield args[0].shape[0], args[1]
    elif node.target in (aten.index_select.default, aten.gather.default):
        yield args[0].shape[args[1]], args[2]
    elif node.target is aten.index.Tensor:
        places = ((dim, p) for dim, p in enumerate(args[1]) if p is not None and p.dtype != torch.bool)
        yield from ((args[0].shape[dim], p) for dim, p in places)
