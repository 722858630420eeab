"""Texts of other lengths than were traced and proven: a graph that isn't the model's for them is refused."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from ..errors import UnsupportedOpError
from ..upstream.operators import number_arguments
from .by_place import CannotRunError, PlaceProgram, by_place_alone
from .calls import site_name
from .inplace import gives_views

aten = torch.ops.aten
EMPTY = {aten.empty_like.default, aten.new_empty.default, aten.empty.memory_format}
SHORTEST = 2  # tokens
LONGEST = 2**17  # tokens read to look for what no number in the graph tells of
ROUNDING = 1e-4  # of a value's largest number


def refuse_by_text_length(module: fx.GraphModule, context_length: int | None, proven: int) -> None:
    """Refuse a rewritten graph in which anything else depends on the length of a text.

    What it makes of positions and sizes is computed for whole texts and for parts of them, of lengths on
    either side of every number that it is made with. None as `context_length`: texts may have any length
    that its tables have. Of `proven` tokens a text is known to be read right in parts.

    Raises:
        UnsupportedOpError: names where, and the longest text for which all agree.
    """
    graph = module.graph
    places = by_place_alone(graph)
    nodes = [n for n in graph.nodes if n in places and n.op == "call_function" and _is_read(n, places)]
    if not nodes:
        return
    program, agreed = PlaceProgram(module, nodes, places), SHORTEST - 1
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
    """Where a part of a text isn't what it is in the whole, in words; or where texts end."""

    node: fx.Node
    reason: str
    is_an_end: bool


def _is_read(node: fx.Node, places: set[fx.Node]) -> bool:
    """Whether it holds something that anything else reads for more than the size of a result."""
    source = node
    while source.args and isinstance(source.args[0], fx.Node) and gives_views(source):
        source = source.args[0]
    if source.target in EMPTY:
        return False
    is_tensor = isinstance(node.meta.get("val", torch.empty(0)), torch.Tensor)
    return any(user not in places and (is_tensor or _takes_as_number(user, node)) for user in node.users)


def _takes_as_number(user: fx.Node, node: fx.Node) -> bool:
    numbers = number_arguments(user.target)
    named = [user.kwargs.get(name) for name in numbers]
    return node in named or any(a is node for i, a in enumerate(user.args) if i in numbers)


def texts_of(numbers: set[int], context_length: int | None) -> list[int]:
    """Lengths in tokens, ascending, on either side of each of `numbers`."""
    limit = context_length or 2**30
    usual = min(limit, LONGEST)
    lengths = {2**n for n in range(1, 18) if 2**n < usual} | {3, usual}
    lengths |= {n + more for n in numbers for more in (-1, 0, 1, 2)}
    return sorted(n for n in lengths if SHORTEST <= n <= limit)


class _Comparison:
    """Compares what nodes hold for a text with what they hold for parts of it.

    Most hold something for each place: that of a part is a part of the whole. Others count the tokens of a
    call, to take rows of its own values. Which of them do so shows in a text of `proven` tokens, in which
    that is right: they must hold the same for each part of a size, and begin alike in each whole text.
    """

    def __init__(self, program: PlaceProgram, nodes: Sequence[fx.Node], proven: int) -> None:
        self._program, self._nodes, self._proven = program, nodes, proven
        self._whole, *parts = self._values(proven)
        self._short = {b - a: values for (a, b), values in zip(_parts(proven), parts, strict=True)}
        self._is_placed = [
            all(
                self._is_part(i, proven, place, self._whole, part)
                for place, part in zip(_parts(proven), parts, strict=True)
            )
            for i in range(len(nodes))
        ]

    def fault(self, tokens: int) -> _Fault | None:
        """The first node that holds something else for a text of so many tokens than for a part of it."""
        try:
            whole, *parts = self._values(tokens)
        except CannotRunError as error:
            return _Fault(error.node, f"can't be computed ({error.reason})", is_an_end=True)
        for i, node in enumerate(self._nodes):
            if self._is_placed[i]:
                agrees = all(
                    self._is_part(i, tokens, place, whole, part)
                    for place, part in zip(_parts(tokens), parts, strict=True)
                )
            else:
                agrees = self._begins_alike(i, tokens, whole) and all(
                    _agree(self._short[b - a][i], part[i])
                    for (a, b), part in zip(_parts(tokens), parts, strict=True)
                )
            if not agrees:
                reason = "depends on how long the whole text is, which a session can't know for its parts"
                return _Fault(node, reason, is_an_end=False)
        return None

    def _values(self, tokens: int) -> list[tuple[Any, ...]]:
        """For the whole text, then for each of its `_parts`."""
        places = [(0, tokens), *_parts(tokens)]
        return [self._program.values(b - a, a, call_end=tokens - 1) for a, b in places]

    def _is_part(self, i: int, tokens: int, place: tuple[int, int], whole: Any, part: Any) -> bool:
        a, b = place
        return _agree(_part_of(whole[i], part[i], self._program.sizes.rows, tokens, a, b), part[i])

    def _begins_alike(self, i: int, tokens: int, whole: Any) -> bool:
        short, long = self._whole[i], whole[i]
        if isinstance(short, torch.Tensor):
            for dim, sizes in enumerate(zip(short.shape, long.shape, strict=True)):
                short, long = (value.narrow(dim, 0, min(sizes)) for value in (short, long))
            return _agree(short, long)
        least = self._short[1][i]  # a size: by so much more for each token
        return (long - least) * (self._proven - 1) == (short - least) * (tokens - 1)


def _parts(tokens: int) -> list[tuple[int, int]]:
    """Where parts of a text begin and end that are compared with it."""
    middle = tokens // 2
    parts = [(0, 1), (0, 3), (middle, middle + 1), (tokens - 3, tokens), (tokens - 1, tokens)]
    return [(a, b) for a, b in parts if a >= 0 and b <= tokens]


def _part_of(whole: Any, part: Any, rows: int, tokens: int, a: int, b: int) -> Any:
    """Tokens `a` to `b` of a value, along every dimension that has as many as there are tokens."""
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
