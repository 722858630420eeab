"""In-place operations written as the ones that give a new value, where nothing else sees the change."""

import torch
from torch import fx

from ..upstream.operators import Operator, existing, may_give_views, name_of, written_arguments
from .dependence import SHAPE_ONLY

aten = torch.ops.aten
# Composite operations that never give a view, though their schemas don't say so.
_FRESH = {aten.linear.default, aten.matmul.default, aten.softmax.int}


def spell_out_of_place(graph: fx.Graph) -> None:
    """Rewrite `graph` in place: x.add_(y) on a fresh x becomes x + y; what may be a view is left alone."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        twin = _out_of_place(node)
        if twin is None or gives_views(node.args[0]):  # what is fresh is its own memory
            continue
        changed = node.args[0]
        later = [user for user in changed.users if user is not node and order[user] > order[node]]
        readers = [user for user in changed.users if user is not node and user.target not in SHAPE_ONLY]
        if any(map(gives_views, readers)):
            continue
        with graph.inserting_before(node):
            value = graph.call_function(twin, node.args, node.kwargs)
        value.meta = dict(node.meta)
        order[value] = order[node]
        for user in later:
            user.replace_input_with(changed, value)
        node.replace_all_uses_with(value)
        graph.erase_node(node)


def _out_of_place(node: fx.Node) -> Operator | None:
    """The operator that gives what this one writes to its first argument alone."""
    name, _, overload = name_of(node.target).partition(".")
    changes_first = [place for place, _ in written_arguments(node.target)] == [0]
    if not name.endswith("_") or not changes_first or not isinstance(node.args[0], fx.Node):
        return None
    return next(iter(existing(f"{name[:-1]}.{overload}")), None)


def gives_views(node: fx.Node) -> bool:
    """Whether an operation may give a view of its input; reshape and contiguous give one at times."""
    return node.target not in _FRESH and may_give_views(node.target)
