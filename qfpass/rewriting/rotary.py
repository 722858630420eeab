"""Find a decoder's rotary position embedding in its rewritten graph, as a function that rotates keys.

The function is cut out of the graph: it takes positions and a key before its rotation, and gives the rotated
key. For a plain rotary embedding, a stored key rotated by a difference of positions is the key at the other
position. That is checked on numbers, not assumed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from ..errors import UnsupportedOpError
from ..graph.dependence import SHAPE_ONLY, text_dependent
from ..graph.devices import device_of
from ..graph.nodes import args_of
from ..upstream.operators import available_operators
from .site import Site

aten = torch.ops.aten

# Operators that are linear in their one operand that depends on the text; the others are angles, weights or
# sizes.
LINEAR = {
    aten.mul.Tensor, aten.add.Tensor, aten.sub.Tensor, aten.neg.default, aten.cat.default,
    aten.stack.default, aten.slice.Tensor, aten.select.int, aten.split.Tensor,
    aten.split_with_sizes.default, aten.chunk.default, aten.unbind.int, aten.unsqueeze.default,
    aten.squeeze.dim, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int,
    aten.transpose.int, aten.permute.default, aten.contiguous.default, aten.clone.default,
    aten.to.dtype, aten.index.Tensor, *available_operators("aten::_to_copy"),
}  # fmt: skip
LOOKUPS = {aten.embedding.default, aten.index.Tensor, aten.gather.default, aten.index_select.default}
CHECKED_POSITIONS = (0, 3, 11, 40)  # positions at which a rotation is checked
DIFFERENCES = (-37, -2, 5)  # of positions, by which keys are moved in the check


@dataclass(frozen=True)
class Rotation:
    """A rotation of keys or queries x [B, H, S, D] by positions [B, S], of either sign.

    Attributes:
        program: (input_ids, position_ids, x) -> rotated x.
        heads_last: whether the program takes x as [B, S, H, D].
        device: where it takes positions.
    """

    program: fx.GraphModule
    heads_last: bool
    device: torch.device

    @torch.no_grad()
    def __call__(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        positions = positions.to(self.device)
        ids = torch.zeros_like(positions)
        x = x.transpose(1, 2) if self.heads_last else x
        return self.program(ids, positions, x)


class RotationFinder:
    """Finds where a rewritten decoder's graph uses positions; masks are no longer part of that graph."""

    def __init__(self, module: fx.GraphModule, sites: Sequence[Site]) -> None:
        self._module, self._sites = module, sites
        ids = next(n for n in module.graph.nodes if n.op == "placeholder")
        self._device = device_of(ids.meta["val"])
        self._order = {node: i for i, node in enumerate(module.graph.nodes)}
        self._text = text_dependent(module.graph, SHAPE_ONLY)
        position_dependent = text_dependent(module.graph, SHAPE_ONLY, source="position_ids")
        self._from_positions = position_dependent - self._text
        named = {str(n.target): n for n in module.graph.nodes if n.op == "call_module"}
        self._calls = [named[f"attention_{site.attention.index}"] for site in sites]

    def refuse_tables(self) -> None:
        """Raise UnsupportedOpError if the decoder looks positions up in a table, since a table ends."""
        for node in self._order:
            if node in self._from_positions and node.target in LOOKUPS:
                raise UnsupportedOpError(
                    f"positions are looked up in a table ({node.name}), which ends: only overflow='error' is "
                    "possible for this model."
                )

    def rotations(self) -> list[Rotation | None]:
        """The rotation of each site's keys; None where a site's keys don't depend on positions.

        Raises:
            UnsupportedOpError: positions are used by anything else than plain rotations of query and key.
        """
        self.refuse_tables()
        turns, inside = [], set[fx.Node]()
        for site, call in zip(self._sites, self._calls, strict=True):
            name = site.attention.name
            query, used_by_query = self._rotation_of(args_of(call)[0], site.attention.query_heads, name)
            key, used_by_key = self._rotation_of(args_of(call)[1], site.attention.kv_heads, name)
            inside |= used_by_query | used_by_key
            if (query is None) != (key is None):
                raise _not_rotary(name, "only one of query and key is turned")
            if query is not None and key is not None:
                _prove(query, key, site, self._device_and_dtype(args_of(call)[1]))
            turns.append(key)
        for node in self._order:
            enters = node in self._text and node.op != "call_module" and self._reads_positions(node)
            if enters and node not in inside:
                raise _not_rotary(node.name, "positions enter there too")
        return turns

    def _reads_positions(self, node: fx.Node) -> bool:
        return any(n in self._from_positions for n in node.all_input_nodes)

    def _device_and_dtype(self, node: fx.Node) -> tuple[torch.device, torch.dtype]:
        value = next(n.meta["val"] for n in (node, *node.all_input_nodes) if "val" in n.meta)
        return value.device, value.dtype

    def _rotation_of(self, node: fx.Node, heads: int, site: str) -> tuple[Rotation | None, set[fx.Node]]:
        """The rotation whose result is `node` (None if there is none), and the nodes that it consists of."""
        rotated = self._rotated_nodes(node)
        if node not in rotated:
            return None, set()
        source = self._source(rotated, site)
        shape = source.meta["val"].shape
        is_heads = [isinstance(n, int) and n == heads for n in shape]
        if len(shape) != 4 or not (is_heads[1] or is_heads[2]):
            raise _not_rotary(site, f"it starts from {source.name}, which isn't parted into heads")
        return Rotation(self._program(source, node), heads_last=not is_heads[1], device=self._device), rotated

    def _rotated_nodes(self, node: fx.Node) -> set[fx.Node]:
        """The linear operations above `node` that read positions, and those that follow one that does."""
        reached, pending = set[fx.Node](), [node]
        while pending:
            current = pending.pop()
            if current not in reached and _is_linear(current):
                reached.add(current)
                pending.extend(n for n in current.all_input_nodes if n in self._text)
        rotated: set[fx.Node] = set()
        for current in sorted(reached, key=self._order.__getitem__):
            if self._reads_positions(current) or any(n in rotated for n in current.all_input_nodes):
                rotated.add(current)
        return rotated

    def _source(self, rotated: set[fx.Node], site: str) -> fx.Node:
        """The one text-dependent value from which all of `rotated` is computed."""
        frontier = {n for t in rotated for n in t.all_input_nodes if n in self._text and n not in rotated}
        while len(frontier) > 1 or not all(isinstance(n.meta.get("val"), torch.Tensor) for n in frontier):
            last = max(frontier, key=self._order.__getitem__)
            if not _is_linear(last):
                raise _not_rotary(site, f"it is made from {', '.join(sorted(n.name for n in frontier))}")
            frontier.remove(last)
            frontier |= {n for n in last.all_input_nodes if n in self._text}
        return frontier.pop()

    def _program(self, source: fx.Node, target: fx.Node) -> fx.GraphModule:
        """A module (input_ids, position_ids, source) -> target, which uses only the shape of the ids."""
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


def _prove(
    query: Rotation, key: Rotation, site: Site, device_and_dtype: tuple[torch.device, torch.dtype]
) -> None:
    """Check on random numbers that query and key are rotated as stored keys need it.

    Rotation by 0 changes nothing and rotation is linear. A key rotated again by a difference of positions is
    the key at the other position. Products of query and key depend on their distance alone.

    Raises:
        UnsupportedOpError: one of these doesn't hold.
    """
    attention, (device, dtype) = site.attention, device_and_dtype
    generator = torch.Generator().manual_seed(0)
    tokens, tolerance = len(CHECKED_POSITIONS), 1e-4 if dtype == torch.float32 else 5e-2

    def random(heads: int) -> torch.Tensor:
        shape = (1, heads, tokens, attention.head_dim)
        return torch.randn(shape, generator=generator).to(device, dtype)

    def at(difference: int) -> torch.Tensor:
        return torch.tensor([CHECKED_POSITIONS], device=device) + difference

    x, y, start = random(attention.kv_heads), random(attention.query_heads), torch.zeros_like(at(0))
    group = attention.query_heads // attention.kv_heads
    products_before = _products(query(y, at(0)), key(x, at(0)), group)
    for difference in DIFFERENCES:
        moved = key(key(x, at(0)), start + difference)
        pairs = (
            (key(x, start), x),
            (key(2 * x, at(0)), 2 * key(x, at(0))),
            (moved, key(x, at(difference))),
            (_products(query(y, at(difference)), moved, group), products_before),
        )
        for actual, wanted in pairs:
            error = (actual.float() - wanted.float()).abs().max() / wanted.float().abs().max()
            if not error <= tolerance:
                raise _not_rotary(attention.name, f"moving a key by {difference} is off by {error:.0e}")


def _products(query: torch.Tensor, key: torch.Tensor, group: int) -> torch.Tensor:
    return query.float() @ key.float().repeat_interleave(group, dim=1).transpose(2, 3)
