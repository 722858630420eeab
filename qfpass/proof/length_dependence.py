"""Refuse graphs that, for texts of other lengths than the proven one, can't be read in parts."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from ..errors import UnsupportedOpError
from ..graph.nodes import args_of, gives_views, site_name
from ..graph.position_program import CannotRunError, PositionProgram, position_only_nodes
from ..upstream.operators import value_arguments

aten = torch.ops.aten
# Operators that leave their result's numbers undefined, so that nothing reads them.
UNINITIALISED = {aten.empty_like.default, aten.new_empty.default, aten.empty.memory_format}
SHORTEST = 2  # tokens
LONGEST = 2**17  # tokens of the longest text tried for lengths that no number in the graph hints at
ROUNDING = 1e-4  # allowed difference, relative to a value's largest magnitude


def refuse_by_text_length(module: fx.GraphModule, context_length: int | None, proven: int) -> None:
    """Raise if values of a rewritten graph depend on the whole text's length, which its parts can't know.

    The values that the graph computes from positions and sizes are computed for whole texts and for parts of
    them, with lengths on either side of every number in the graph. If `context_length` is None, texts may be
    as long as the graph's tables allow. A text of `proven` tokens is known to be read right in parts.

    Raises:
        UnsupportedOpError: names the node, and the longest text for which all values agree.
    """
    graph = module.graph
    places = position_only_nodes(graph)
    moving = places - _made_of_weights(graph)
    nodes = [n for n in graph.nodes if n in moving and n.op == "call_function" and _is_read(n, places)]
    if not nodes:
        return
    program, agreed = PositionProgram(module, nodes, places), SHORTEST - 1
    comparison = _Comparison(program, nodes, min(proven, context_length or proven))
    for tokens in texts_of(program.numbers, context_length):
        fault = comparison.fault(tokens)
        if fault is None:
            agreed = tokens
            continue
        while tokens - agreed > 1:
            middle = (agreed + tokens) // 2
            found = comparison.fault(middle)
            agreed, tokens, fault = (middle, tokens, fault) if found is None else (agreed, middle, found)
        if context_length is None and fault.is_an_end:
            return
        raise UnsupportedOpError(
            f"{site_name(fault.node)}: from {tokens} tokens on, {fault.node.name} {fault.reason}"
            + (f": pass context_length={agreed} at most." if agreed >= SHORTEST else ".")
        )


class _Fault(NamedTuple):
    """A node whose value for a part of a text is wrong, and why; `is_an_end`: it can't be computed at all."""

    node: fx.Node
    reason: str
    is_an_end: bool


def _made_of_weights(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that depend on held tensors alone, as a dequantised weight does: on no length of a text."""
    found = set[fx.Node]()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr" or (node.op == "call_function" and inputs and found.issuperset(inputs)):
            found.add(node)
    return found


def _is_read(node: fx.Node, places: set[fx.Node]) -> bool:
    """Whether a node outside `places` reads this one's numbers, and not only its size."""
    source = node
    while args_of(source) and isinstance(args_of(source)[0], fx.Node) and gives_views(source):
        source = args_of(source)[0]
    if source.target in UNINITIALISED:
        return False
    is_tensor = isinstance(node.meta.get("val", torch.empty(0)), torch.Tensor)
    return any(user not in places and (is_tensor or _takes_as_number(user, node)) for user in node.users)


def _takes_as_number(user: fx.Node, node: fx.Node) -> bool:
    numbers = value_arguments(user.target)
    named = [value for name, value in user.kwargs.items() if name in numbers]
    return node in named or any(a is node for i, a in enumerate(args_of(user)) if i in numbers)


def texts_of(numbers: set[int], context_length: int | None) -> list[int]:
    """The lengths of texts to try, in tokens, ascending: powers of two and lengths around `numbers`."""
    limit = context_length or 2**30
    usual = min(limit, LONGEST)
    lengths = {2**n for n in range(1, 18) if 2**n < usual} | {3, usual}
    lengths |= {n + more for n in numbers for more in (-1, 0, 1, 2)}
    return sorted(n for n in lengths if SHORTEST <= n <= limit)


class _Comparison:
    """Compares the values of nodes for a text with their values for parts of it.

    Most nodes hold something for each position: their value for a part must be that part of their value for
    the whole text. Other nodes count the tokens of a call, to index its own values: their value must be the
    same for all parts of one size, and must start alike for all whole texts. A text of `proven` tokens, which
    is known to be read right in parts, tells which kind a node is.
    """

    def __init__(self, program: PositionProgram, nodes: Sequence[fx.Node], proven: int) -> None:
        self._program, self._nodes, self._proven = program, nodes, proven
        self._whole, *parts = self._values(proven)
        self._short = {b - a: values for (a, b), values in zip(_parts(proven), parts, strict=True)}
        self._is_per_position = [
            all(
                self._is_part(i, proven, span, self._whole, part)
                for span, part in zip(_parts(proven), parts, strict=True)
            )
            for i in range(len(nodes))
        ]

    def fault(self, tokens: int) -> _Fault | None:
        """The first node whose value for a part of a text of this length is wrong; None if all are right."""
        try:
            whole, *parts = self._values(tokens)
        except CannotRunError as error:
            return _Fault(error.node, f"can't be computed ({error.reason})", is_an_end=True)
        for i, node in enumerate(self._nodes):
            if self._is_per_position[i]:
                agrees = all(
                    self._is_part(i, tokens, span, whole, part)
                    for span, part in zip(_parts(tokens), parts, strict=True)
                )
            else:
                agrees = self._starts_alike(i, tokens, whole) and all(
                    _agree(self._short[b - a][i], part[i])
                    for (a, b), part in zip(_parts(tokens), parts, strict=True)
                )
            if not agrees:
                reason = "depends on how long the whole text is, which a session can't know for its parts"
                return _Fault(node, reason, is_an_end=False)
        return None

    def _values(self, tokens: int) -> list[tuple[Any, ...]]:
        """The nodes' values for the whole text, then for each of its `_parts`."""
        places = [(0, tokens), *_parts(tokens)]
        return [self._program.values(b - a, a, call_end=tokens - 1) for a, b in places]

    def _is_part(self, i: int, tokens: int, span: tuple[int, int], whole: Any, part: Any) -> bool:
        a, b = span
        return _agree(_part_of(whole[i], part[i], self._program.sizes.rows, tokens, a, b), part[i])

    def _starts_alike(self, i: int, tokens: int, whole: Any) -> bool:
        short, long = self._whole[i], whole[i]
        if isinstance(short, torch.Tensor):
            for dim, sizes in enumerate(zip(short.shape, long.shape, strict=True)):
                short, long = (value.narrow(dim, 0, min(sizes)) for value in (short, long))
            return _agree(short, long)
        least = self._short[1][i]  # a size, which must grow by the same amount for each token
        return (long - least) * (self._proven - 1) == (short - least) * (tokens - 1)


def _parts(tokens: int) -> list[tuple[int, int]]:
    """The start and end of each part of a text that is compared with the whole text."""
    middle = tokens // 2
    parts = [(0, 1), (0, 3), (middle, middle + 1), (tokens - 3, tokens), (tokens - 1, tokens)]
    return [(a, b) for a, b in parts if a >= 0 and b <= tokens]


def _part_of(whole: Any, part: Any, rows: int, tokens: int, a: int, b: int) -> Any:
    """Tokens `a` to `b` of the value `whole`, along every dimension with a number for each token."""
    if not isinstance(whole, torch.Tensor) or whole.dim() != part.dim():
        return whole
    for dim in range(whole.dim()):
        size, wanted = whole.shape[dim], part.shape[dim]
        if size == tokens and wanted == b - a:
            whole = whole.narrow(dim, a, b - a)
        elif size == rows * tokens and wanted == rows * (b - a):
            whole = whole.unflatten(dim, (rows, tokens)).narrow(dim + 1, a, b - a).flatten(dim, dim + 1)
    return whole


def _agree(expected: Any, actual: Any) -> bool:
    if not isinstance(expected, torch.Tensor):
        return bool(expected == actual)
    if expected.shape != actual.shape:
        return False
    if not expected.is_floating_point():
        return torch.equal(expected, actual)
    largest = expected.detach().nan_to_num(0.0, 0.0, 0.0).abs()
    scale = float(largest.max()) if expected.numel() else 0.0
    return torch.allclose(actual, expected, rtol=0.0, atol=ROUNDING * scale, equal_nan=True)
