"""What a graph computes from positions and sizes alone, to be run on texts of our choice."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx

from ..errors import UnsupportedOpError
from ..upstream.entry import describe
from .calls import site_name
from .dependence import SHAPE_ONLY, whole_numbers

aten = torch.ops.aten
OF_PLACES = ("position_ids", "call_end")  # inputs of a rewritten graph


class Sizes:
    """What the sizes of a graph's values are for a text of our choice."""

    def __init__(self, ids: torch.Tensor) -> None:
        """`ids` [B, S] are a trace's."""
        self.rows = ids.shape[0] if isinstance(ids.shape[0], int) else 1
        self._symbols = [size.node.expr if isinstance(size, torch.SymInt) else None for size in ids.shape]

    def are_known(self, value: Any) -> bool:
        """Whether a traced tensor's sizes are made of those of the ids."""
        return isinstance(value, torch.Tensor) and all(
            isinstance(size, int) or size.node.expr.free_symbols <= set(self._symbols) for size in value.shape
        )

    def of(self, value: torch.Tensor, tokens: int) -> list[int]:
        """The shape of a traced tensor for a text of so many tokens."""
        numbers = dict(zip(self._symbols, (self.rows, tokens), strict=True))
        return [s if isinstance(s, int) else int(s.node.expr.subs(numbers)) for s in value.shape]


def by_place_alone(graph: fx.Graph) -> set[fx.Node]:
    """What depends on positions and on how many tokens there are, and on nothing else that is given."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    sizes = Sizes(inputs[0].meta["val"])
    others = {node for node in inputs if node.name not in OF_PLACES}
    for node in graph.nodes:
        if node.target in SHAPE_ONLY and sizes.are_known(node.args[0].meta.get("val")):
            continue
        if any(given in others for given in node.all_input_nodes):
            others.add(node)
    return {n for n in graph.nodes if n not in others and n.op not in ("get_attr", "output")}


class CannotRunError(UnsupportedOpError):
    """A node doesn't take a text of this length; says why."""

    def __init__(self, node: fx.Node, reason: str) -> None:
        super().__init__(f"{site_name(node)}: {node.name} can't be computed from positions: {reason}.")
        self.node, self.reason = node, reason


class PlaceProgram(fx.Interpreter):
    """Nodes of a graph that depend on places alone, run for one row of tokens.

    Or for as many rows as the graph is made for, if that is fixed.

    Attributes:
        numbers: the whole numbers that they are made with.
    """

    def __init__(self, module: fx.GraphModule, nodes: Sequence[fx.Node], places: set[fx.Node]) -> None:
        """`places` are all that `by_place_alone` gives of the module's graph, `nodes` some of them."""
        ids = next(node for node in module.graph.nodes if node.op == "placeholder").meta["val"]
        self.sizes, self._device = Sizes(ids), ids.device
        graph, self._shaped = _cut_out(module.graph, nodes, places)
        super().__init__(fx.GraphModule(module, graph))
        self.numbers = whole_numbers(self.module)

    @torch.no_grad()
    def values(self, tokens: int, first: int, call_end: int) -> tuple[Any, ...]:
        """What the nodes hold for `tokens` tokens from position `first`.

        Raises:
            CannotRunError: one of them doesn't take that.
        """
        position = torch.arange(first, first + tokens, device=self._device).expand(self.sizes.rows, -1)
        places = {
            "position_ids": position.contiguous(),
            "call_end": torch.tensor(call_end, device=self._device),
        }
        shaped = (
            torch.empty(self.sizes.of(value, tokens), dtype=value.dtype, device=self._device)
            for value in self._shaped
        )
        return self.run(*(places[name] for name in OF_PLACES), *shaped, enable_io_processing=False)

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


def _cut_out(
    graph: fx.Graph, nodes: Sequence[fx.Node], places: set[fx.Node]
) -> tuple[fx.Graph, list[torch.Tensor]]:
    """What makes `nodes`, as (*`OF_PLACES`, *tensors of which only the shape is asked) -> a tuple of them.

    Also returns these tensors as they were traced.
    """
    cut, copies, shaped = fx.Graph(), dict[fx.Node, fx.Node](), list[torch.Tensor]()
    inputs = {node.name: node for node in graph.nodes if node.op == "placeholder"}
    for name in OF_PLACES:
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
