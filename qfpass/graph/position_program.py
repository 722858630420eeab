"""The part of a graph that depends on positions and sizes alone, to be run for texts of any length."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx

from ..errors import UnsupportedOpError
from ..upstream.entry import describe
from .dependence import SHAPE_ONLY
from .devices import device_of
from .nodes import args_of, site_name
from .subgraph import integers_in

aten = torch.ops.aten
# Inputs of a rewritten graph that hold positions: each token's [B, S], and that of the call's last token [].
POSITION_INPUTS = ("position_ids", "call_end")


class TracedSizes:
    """Computes the sizes of traced tensors for a text of any length.

    Attributes:
        rows: the number of rows that the graph is made for; 1 if it takes any number.
    """

    def __init__(self, ids: torch.Tensor) -> None:
        """`ids` [B, S] are the token ids as traced; a size that may vary is a symbol."""
        self.rows = ids.shape[0] if isinstance(ids.shape[0], int) else 1
        self._symbols = [size.node.expr if isinstance(size, torch.SymInt) else None for size in ids.shape]

    def are_known(self, value: Any) -> bool:
        """Whether `value` is a traced tensor whose sizes follow from those of the ids."""
        return isinstance(value, torch.Tensor) and all(
            isinstance(size, int) or size.node.expr.free_symbols <= set(self._symbols) for size in value.shape
        )

    def of(self, value: torch.Tensor, tokens: int) -> list[int]:
        """The shape of a traced tensor for a text of `tokens` tokens."""
        numbers = dict(zip(self._symbols, (self.rows, tokens), strict=True))
        return [s if isinstance(s, int) else int(s.node.expr.subs(numbers)) for s in value.shape]


def position_only_nodes(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that depend on positions (`POSITION_INPUTS`) and sizes alone, without get_attr nodes.

    A node that reads only the shape of a tensor is one of them if that shape follows from the ids' shape.
    """
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    sizes = TracedSizes(inputs[0].meta["val"])
    others = {node for node in inputs if node.name not in POSITION_INPUTS}
    for node in graph.nodes:
        if node.target in SHAPE_ONLY and sizes.are_known(args_of(node)[0].meta.get("val")):
            continue
        if any(given in others for given in node.all_input_nodes):
            others.add(node)
    return {n for n in graph.nodes if n not in others and n.op not in ("get_attr", "output")}


class CannotRunError(UnsupportedOpError):
    """A node can't be computed for a text of this length; `node` is that node, `reason` says why."""

    def __init__(self, node: fx.Node, reason: str) -> None:
        super().__init__(f"{site_name(node)}: {node.name} can't be computed from positions: {reason}.")
        self.node, self.reason = node, reason


class PositionProgram(fx.Interpreter):
    """Runs nodes of a graph that depend on positions and sizes alone, for one row of tokens.

    If the graph is made for a fixed number of rows, it runs them for that many.

    Attributes:
        sizes: the sizes of traced tensors for a text of any length.
        numbers: the whole numbers in what computes the nodes, as `integers_in` finds them.
    """

    def __init__(self, module: fx.GraphModule, nodes: Sequence[fx.Node], places: set[fx.Node]) -> None:
        """`places` is `position_only_nodes(module.graph)`; `nodes` are those whose values are wanted."""
        ids = next(node for node in module.graph.nodes if node.op == "placeholder").meta["val"]
        self.sizes, self._device = TracedSizes(ids), device_of(ids)
        graph, self._shaped = _cut_out(module.graph, nodes, places)
        program = fx.GraphModule(module, graph)
        super().__init__(program)
        self.numbers = integers_in(program)

    @torch.no_grad()
    def values(self, tokens: int, first: int, call_end: int) -> tuple[Any, ...]:
        """The nodes' values for `tokens` tokens from position `first`, in a call that ends at `call_end`.

        Raises:
            CannotRunError: a node can't be computed for these tokens.
        """
        position = torch.arange(first, first + tokens, device=self._device).expand(self.sizes.rows, -1)
        places = {
            "position_ids": position.contiguous(),
            "call_end": torch.tensor(call_end, device=self._device),
        }
        shaped = (
            torch.empty(self.sizes.of(value, tokens), dtype=value.dtype, device=device_of(value))
            for value in self._shaped
        )
        return self.run(*(places[name] for name in POSITION_INPUTS), *shaped, enable_io_processing=False)

    def run_node(self, node: fx.Node) -> Any:
        """The value of `node`.

        Indices are checked first: a GPU doesn't recover from one past the end of a table.

        Raises:
            CannotRunError: the node can't be computed.
        """
        args, _ = self.fetch_args_kwargs_from_env(node)
        for size, places in _lookups(node, args):
            if places.numel() and int(places.max()) >= size:
                raise CannotRunError(node, f"a table ends there, which has {size} rows")
        try:
            return super().run_node(node)
        except (RuntimeError, IndexError) as error:
            raise CannotRunError(node, describe(error)) from error


def _lookups(node: fx.Node, args: Sequence[Any]) -> Iterator[tuple[int, torch.Tensor]]:
    """For each dimension that a node indexes by a tensor: its size, and the indices."""
    if node.target is aten.embedding.default:
        yield args[0].shape[0], args[1]
    elif node.target in (aten.index_select.default, aten.gather.default):
        yield args[0].shape[args[1]], args[2]
    elif node.target is aten.index.Tensor:
        places = ((dim, p) for dim, p in enumerate(args[1]) if p is not None and p.dtype != torch.bool)
        yield from ((args[0].shape[dim], p) for dim, p in places)


def _cut_out(
    graph: fx.Graph, nodes: Sequence[fx.Node], places: set[fx.Node]
) -> tuple[fx.Graph, list[torch.Tensor]]:
    """A graph (*`POSITION_INPUTS`, *shaped) -> the tuple of `nodes`, and the `shaped` tensors as traced.

    `shaped` are tensors outside `places` of which the graph reads the shape alone.
    """
    cut, copies, shaped = fx.Graph(), dict[fx.Node, fx.Node](), list[torch.Tensor]()
    inputs = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    for name in POSITION_INPUTS:
        copies[inputs[name]] = last = cut.placeholder(name)

    def shape_of(node: fx.Node) -> fx.Node:
        nonlocal last
        if node not in copies:
            with cut.inserting_after(last):
                copies[node] = last = cut.placeholder(f"shaped_{len(shaped)}")
            shaped.append(node.meta["val"])
        return copies[node]

    needed, pending = set[fx.Node](), list(nodes)
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending += [n for n in node.all_input_nodes if n in places or n.op == "get_attr"]
    for node in graph.nodes:
        if node in needed and node not in copies:
            copies[node] = cut.node_copy(node, lambda n: copies[n] if n in copies else shape_of(n))
    cut.output(tuple(copies[node] for node in nodes))
    return cut, shaped
