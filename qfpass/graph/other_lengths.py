"""Texts of other lengths than were traced and proven: a graph that isn't the model's for them is refused."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from ..errors import CaptureError, UnsupportedOpError
from ..upstream.export import sizes_hold
from ..upstream.operators import number_arguments
from .by_place import CannotRunError, PlaceProgram, by_place_alone
from .calls import site_name
from .capture import Captured
from .mixing import BATCH, LENGTH

SHORTEST = 4  # tokens
LONGEST = 2**17  # tokens read to look for what no number in the graph tells of
ROUNDING = 1e-4  # of a value's largest number


def refuse_by_text_length(module: fx.GraphModule, context_length: int | None) -> None:
    """Refuse a rewritten graph in which anything else depends on the length of a text.

    What it makes of positions and sizes is computed for whole texts and for parts of them, of lengths on
    either side of every number that it is made with. None as `context_length`: texts may have any length
    that its tables have.

    Raises:
        UnsupportedOpError: names where, and the longest text for which all agree.
    """
    graph = module.graph
    position, call_end = (
        next(n for n in graph.nodes if n.op == "placeholder" and n.name == name)
        for name in ("position_ids", "call_end")
    )
    places = by_place_alone(graph, position, call_end)
    nodes = [n for n in graph.nodes if n in places and n.op == "call_function" and _is_read(n, places)]
    if not nodes:
        return
    program, agreed = PlaceProgram(module, nodes), SHORTEST - 1
    for tokens in _texts(program.numbers, context_length):
        fault = _fault(program, nodes, tokens)
        if fault is None:
            agreed = tokens
            continue
        while tokens - agreed > 1:
            middle = (agreed + tokens) // 2
            found = _fault(program, nodes, middle)
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
    """Whether anything else reads it for more than the size of a result."""
    is_tensor = isinstance(node.meta.get("val", torch.empty(0)), torch.Tensor)
    return any(user not in places and (is_tensor or _takes_as_number(user, node)) for user in node.users)


def _takes_as_number(user: fx.Node, node: fx.Node) -> bool:
    numbers = number_arguments(user.target)
    named = [user.kwargs.get(name) for name in numbers]
    return node in named or any(a is node for i, a in enumerate(user.args) if i in numbers)


def _texts(numbers: set[int], context_length: int | None) -> list[int]:
    """Lengths in tokens, ascending."""
    limit = context_length or 2**30
    usual = min(limit, LONGEST)
    lengths = {2**n for n in range(3, 18) if 2**n < usual} | {usual}
    lengths |= {n + more for n in numbers for more in (0, 1, 2)}
    return sorted(n for n in lengths if SHORTEST <= n <= limit)


def _fault(program: PlaceProgram, nodes: Sequence[fx.Node], tokens: int) -> _Fault | None:
    """The first node that holds something else for a text of so many tokens than for a part of it."""
    parts = (0, 1), (0, 3), (tokens // 2, tokens // 2 + 2), (tokens - 3, tokens), (tokens - 1, tokens)
    try:
        whole = program.values(tokens, 0, call_end=tokens - 1)
        for a, b in parts:
            part = program.values(b - a, a, call_end=tokens - 1)
            for node, expected, actual in zip(nodes, whole, part, strict=True):
                if not _agree(_part_of(expected, actual, program.rows, tokens, a, b), actual):
                    reason = "depends on how long the whole text is, which a session can't know for its parts"
                    return _Fault(node, reason, is_an_end=False)
    except CannotRunError as error:
        return _Fault(error.node, f"can't be computed ({error.reason})", is_an_end=True)
    return None


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
    if not isinstance(expected, torch.Tensor) or not expected.is_floating_point():
        return bool(torch.equal(*map(torch.as_tensor, (expected, actual))))
    if expected.shape != actual.shape:
        return False
    scale = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max()) if expected.numel() else 0.0
    return torch.allclose(actual, expected, rtol=0.0, atol=ROUNDING * scale, equal_nan=True)


def refuse_by_sizes(name: str, captured: Captured, context_length: int | None) -> None:
    """Refuse a graph of the model `name` that isn't what the model does with a text of some other length.

    Raises:
        CaptureError: a Python branch on the length goes another way, or a table is too short.
    """
    rows = captured.batch or BATCH
    numbers = {int(digits) for text in captured.conditions for digits in re.findall(r"\d+", text)}
    longest = 1
    for tokens in sorted(
        {*range(2, min(context_length or LONGEST, 256) + 1), *_texts(numbers, context_length)}
    ):
        sizes = dict.fromkeys(("input_ids", "position_ids"), (rows, tokens))
        if all(sizes_hold(condition, sizes) for condition in captured.conditions):
            longest = tokens
        elif longest < LENGTH:
            raise CaptureError(
                f"{name} does something else with a text of {tokens} tokens than with one of {LENGTH}: its "
                "forward branches on the length, and a session can't know that of the whole text."
            )
        else:
            raise CaptureError(
                f"{name} takes texts of {longest} tokens, but not of {tokens}: its forward does something "
                f"else there, or a table in it ends. Pass context_length={longest} at most."
            )
