"""Operators whose result equals their input, and how to remove them from a graph."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from .nodes import args_of

aten = torch.ops.aten


def drop_no_ops(graph: fx.Graph) -> None:
    """Remove the no-ops from `graph` in place: their users read their inputs instead."""
    for node in list(graph.nodes):
        first = args_of(node)[0] if args_of(node) else None
        given = first.meta.get("val") if isinstance(first, fx.Node) else None
        if is_no_op(node.target, (given, *args_of(node)[1:]), node.meta.get("val")):
            node.replace_all_uses_with(args_of(node)[0])
            graph.erase_node(node)


def is_no_op(target: Any, operands: Sequence[Any], after: Any) -> bool:
    """Whether operator `target`, called with `operands`, gave its first operand unchanged as `after`.

    True of a cast to the same dtype and device, a slice of a whole dimension, dropout in inference, alias and
    detach. `operands` and `after` hold traced tensors.
    """
    before = operands[0] if operands else None
    if not isinstance(before, torch.Tensor) or not isinstance(after, torch.Tensor):
        return False
    if target in (aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other):
        return before.dtype == after.dtype and before.device == after.device
    if target is aten.slice.Tensor:
        given = dict(zip(("start", "end", "step"), operands[2:], strict=False))
        ends = (None, torch.iinfo(torch.int64).max)
        return given.get("start") in (0, None) and given.get("end") in ends and given.get("step", 1) == 1
    if target is aten.dropout.default:
        return operands[2] is False
    return target in (aten.alias.default, aten.detach_.default, aten.detach.default)
