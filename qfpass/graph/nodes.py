"""Nodes of an FX graph: the names of their operators and modules, what they read, and how to insert one."""

from operator import attrgetter
from typing import Any

import torch
from torch import fx

from ..upstream.operators import Operator, may_give_views, name_of

aten = torch.ops.aten
# Composite operators that never return a view, though their schemas don't say so.
_FRESH = {aten.linear.default, aten.matmul.default, aten.softmax.int}


def args_of(node: fx.Node) -> tuple[Any, ...]:
    """A node's positional arguments. Their type in FX is a union of all that any graph holds."""
    return node.args


def operator_of(node: fx.Node) -> Operator:
    """The operator that a call_function node calls."""
    assert callable(node.target)
    return node.target


def graph_module(root: torch.nn.Module, path: str) -> fx.GraphModule:
    """The graph module at `path` in `root`."""
    found = root.get_submodule(path)
    assert isinstance(found, fx.GraphModule)
    return found


def operator_name(node: fx.Node) -> str:
    """The name without overload of the operator that `node` calls, such as aten::add; "" if it calls none."""
    return name_of(node.target).partition(".")[0]


def site_name(node: fx.Node) -> str:
    """The path of the innermost module that `node` was traced in, or the node's own name if none is known."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    if not paths:
        return node.name
    path = paths[-1].replace("L['self'].", "").removeprefix("model.")
    return path or node.name


def attribute(module: fx.GraphModule, node: fx.Node) -> Any:
    """The attribute of `module` that a get_attr node of its graph reads."""
    return attrgetter(str(node.target))(module)


def insert(before: fx.Node, target: Operator, *args: Any, **kwargs: Any) -> fx.Node:
    """Insert a call of `target` before the node `before`, and return the new node.

    Its `meta["val"]` is its traced value; the rest of its `meta`, such as the module stack, is `before`'s.
    """
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, args, kwargs)
    node.meta = {k: v for k, v in before.meta.items() if k != "val"}
    given: Any = (args, kwargs)
    values, named = fx.map_arg(given, lambda n: n.meta["val"])
    node.meta["val"] = target(*values, **named)
    return node


def gives_views(node: fx.Node) -> bool:
    """Whether a node may return a view of its input, be it only at times, as reshape and contiguous do."""
    return node.target not in _FRESH and may_give_views(node.target)


def is_pointwise(node: fx.Node) -> bool:
    """Whether a node calls an operator that computes each element from the elements in its place alone."""
    return torch.Tag.pointwise in getattr(node.target, "tags", ())
