"""Rotary positions, found in a rewritten decoder's graph: what turns a key by its position.

The part of the graph between a key and the one text value that it is made from is cut out, with the angles
computed from the positions. For plain rotary positions it maps a stored key and a difference of positions
to the key at the other position; that is proved on numbers, not assumed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from ..errors import UnsupportedOpError
from ..upstream.operators import existing
from .dependence import SHAPE_ONLY, text_dependent
from .rewrite import Site

aten = torch.ops.aten

# Linear in their one operand that depends on the text; the others are angles, weights or sizes.
LINEAR = {
    aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.neg.default, aten.cat.default,
    aten.stack.default, aten.slice.Tensor, aten.select.int, aten.split.Tensor,
    aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int, aten.unsqueeze.default,
    aten.squeeze.dim, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int,
    aten.transpose.int, aten.permute.default, aten.contiguous.default, aten.clone.default,
    aten.to.dtype, aten.index.Tensor, *existing("aten::_to_copy"),
}  # fmt: skip
LOOKUPS = {aten.embedding.default, aten.index.Tensor, aten.gather.default, aten.index_select.default}
PLACES = (0, 3, 11, 40)  # positions at which a rotation is proved
DIFFERENCES = (-37, -2, 5)


@dataclass(frozen=True)
class Turn:
    """turn(x, positions): keys or queries x [B, H, S, D] turned by positions [B, S], of either sign."""

    program: fx.GraphModule
    heads_last: bool

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        ids = torch.zeros_like(positions)
        x = x.transpose(1, 2) if self.heads_last else x
        return self.program(ids, positions, x)


class Positions:
    """Where positions enter a rewritten decoder's graph, masks apart."""

    def __init__(self, module: fx.GraphModule, sites: Sequence[Site]) -> None:
        self._module, self._sites = module, sites
        self._order = {node: i for i, node in enumerate(module.graph.nodes)}
        self._text = text_dependent(module.graph, SHAPE_ONLY)
        placed = text_dependent(module.graph, SHAPE_ONLY, source="position_ids")
        self._places = placed - self._text
        named = {str(n.target): n for n in module.graph.nodes if n.op == "call_module"}
        self._calls = [named[f"attention_{site.attention.index}"] for site in sites]

    def refuse_tables(self) -> None:
        """Refuse a decoder that looks its positions up in a table, which ends somewhere."""
        for node in self._order:
            if node in self._places and node.target in LOOKUPS:
                raise UnsupportedOpError(
                    f"positions are looked up in a table ({node.name}), which ends: only overflow='error' is "
                    "possible for this model."
                )

    def turns(self) -> list[Turn | None]:
        """What turns each site's keys; None where a site's keys don't know their positions.

        Raises:
            UnsupportedOpError: positions enter by something else than plain rotations of query and key.
        """
        self.refuse_tables()
        turns, inside = [], set[fx.Node]()
        for site, call in zip(self._sites, self._calls, strict=True):
            name = site.attention.name
            query, used = self._turn(call.args[0], site.attention.query_heads, name)
            key, also = self._turn(call.args[1], site.attention.kv_heads, name)
            inside |= used | also
            if (query is None) != (key is None):
                raise _not_rotary(name, "only one of query and key is turned")
            if query is not None and key is not None:
                _prove(query, key, site, self._device_and_dtype(call.args[1]))
            turns.append(key)
        for node in self._order:
            enters = node in self._text and node.op != "call_module" and self._is_placed(node)
            if enters and node not in inside:
                raise _not_rotary(node.name, "positions enter there too")
        return turns

    def _is_placed(self, node: fx.Node) -> bool:
        return any(n in self._places for n in node.all_input_nodes)

    def _device_and_dtype(self, node: fx.Node) -> tuple[torch.device, torch.dtype]:
        value = next(n.meta["val"] for n in (node, *node.all_input_nodes) if "val" in n.meta)
        return value.device, value.dtype

    def _turn(self, node: fx.Node, heads: int, site: str) -> tuple[Turn | None, set[fx.Node]]:
        """What turns `node`, and the nodes that positions enter by or follow."""
        turned = self._turned(node)
        if node not in turned:
            return None, set()
        source = self._source(turned, site)
        shape = source.meta["val"].shape
        is_heads = [isinstance(n, int) and n == heads for n in shape]
        if len(shape) != 4 or not (is_heads[1] or is_heads[2]):
            raise _not_rotary(site, f"it starts from {source.name}, which isn't parted into heads")
        return Turn(self._program(source, node), heads_last=not is_heads[1]), turned

    def _turned(self, node: fx.Node) -> set[fx.Node]:
        """Of the linear operations that lead to `node`: those that positions enter by or follow."""
        reached, pending = set[fx.Node](), [node]
        while pending:
            current = pending.pop()
            if current not in reached and _is_linear(current):
                reached.add(current)
                pending.extend(n for n in current.all_input_nodes if n in self._text)
        turned: set[fx.Node] = set()
        for current in sorted(reached, key=self._order.__getitem__):
            if self._is_placed(current) or any(n in turned for n in current.all_input_nodes):
                turned.add(current)
        return turned

    def _source(self, turned: set[fx.Node], site: str) -> fx.Node:
        """The one text value that everything turned is made from."""
        frontier = {n for t in turned for n in t.all_input_nodes if n in self._text and n not in turned}
        while len(frontier) > 1 or not all(isinstance(n.meta.get("val"), torch.Tensor) for n in frontier):
            last = max(frontier, key=self._order.__getitem__)
            if not _is_linear(last):
                raise _not_rotary(site, f"it is made from {', '.join(sorted(n.name for n in frontier))}")
            frontier.remove(last)
            frontier |= {n for n in last.all_input_nodes if n in self._text}
        return frontier.pop()

    def _program(self, source: fx.Node, target: fx.Node) -> fx.GraphModule:
        """(input_ids, position_ids, source) -> target; of the ids, only the shape matters."""
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        for node in self._order:
            if node.op == "placeholder" and node.name in ("input_ids", "position_ids"):
                copies[node] = graph.node_copy(node)
        copies[source] = graph.placeholder("source")
        needed, pending = set[fx.Node](), [target]
        while pending:
            node = pending.pop()
            if node not in needed and node not in copies:
                needed.add(node)
                pending.extend(node.all_input_nodes)
        for node in self._order:
            if node in needed:
                if node.op == "placeholder":
                    raise _not_rotary(target.name, f"they depend on {node.name}, the length of the text")
                copies[node] = graph.node_copy(node, lambda n: copies[n])
        graph.output(copies[target])
        return fx.GraphModule(self._module, graph)


def _is_linear(node: fx.Node) -> bool:
    return node.target in LINEAR or getattr(node.target, "__name__", "") == "getitem"


def _not_rotary(site: str, reason: str) -> UnsupportedOpError:
    return UnsupportedOpError(
        f"{site}: its positions aren't plain rotary ({reason}), so stored keys can't be moved: only "
        "overflow='error' or 'continue' is possible for this model."
    )


def _prove(query: Turn, key: Turn, site: Site, place: tuple[torch.device, torch.dtype]) -> None:
    """A key moves by a difference of positions, and query and key at equal distance meet alike."""
    attention, (device, dtype) = site.attention, place
    generator = torch.Generator().manual_seed(0)
    tokens, tolerance = len(PLACES), 1e-4 if dtype == torch.float32 else 5e-2

    def random(heads: int) -> torch.Tensor:
        shape = (1, heads, tokens, attention.head_dim)
        return torch.randn(shape, generator=generator).to(device, dtype)

    def at(difference: int) -> torch.Tensor:
        return torch.tensor([PLACES], device=device) + difference

    x, y, start = random(attention.kv_heads), random(attention.query_heads), torch.zeros_like(at(0))
    group = attention.query_heads // attention.kv_heads
    met = _products(query(y, at(0)), key(x, at(0)), group)
    for difference in DIFFERENCES:
        moved = key(key(x, at(0)), start + difference)
        pairs = (
            (key(x, start), x),
            (key(2 * x, at(0)), 2 * key(x, at(0))),
            (moved, key(x, at(difference))),
            (_products(query(y, at(difference)), moved, group), met),
        )
        for actual, wanted in pairs:
            error = (actual.float() - wanted.float()).abs().max() / wanted.float().abs().max()
            if not error <= tolerance:
                raise _not_rotary(attention.name, f"moving a key by {difference} is off by {error:.0e}")


def _products(query: torch.Tensor, key: torch.Tensor, group: int) -> torch.Tensor:
    return query.float() @ key.float().repeat_interleave(group, dim=1).transpose(2, 3)
