"""Replace in-place operators by those that return a new value, where nothing else sees the change."""

import torch
from torch import fx

from ..graph.dependence import SHAPE_ONLY
from ..graph.nodes import args_of, gives_views
from ..upstream.operators import Operator, available_operators, name_of, written_arguments

aten = torch.ops.aten


def rewrite_in_place(graph: fx.Graph) -> None:
    """Rewrite `graph` in place: x.add_(y) becomes x + y where neither x nor a reader of x may be a view."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        twin = _out_of_place(node)
        if twin is None or gives_views(args_of(node)[0]):  # a view's memory is another tensor's too
            continue
        changed = args_of(node)[0]
        later = [user for user in changed.users if user is not node and order[user] > order[node]]
        readers = [user for user in changed.users if user is not node and user.target not in SHAPE_ONLY]
        if any(map(gives_views, readers)):
            continue
        with graph.inserting_before(node):
            value = graph.call_function(twin, args_of(node), node.kwargs)
        value.meta = dict(node.meta)
        order[value] = order[node]
        for user in later:
            user.replace_input_with(changed, value)
        node.replace_all_uses_with(value)
        graph.erase_node(node)


def _out_of_place(node: fx.Node) -> Operator | None:
    """The operator that returns what `node` writes to its first argument; None if `node` is no such call."""
    name, _, overload = name_of(node.target).partition(".")
    changes_first = [place for place, _ in written_arguments(node.target)] == [0]
    if not name.endswith("_") or not changes_first or not isinstance(args_of(node)[0], fx.Node):
        return None
    return next(iter(available_operators(f"{name[:-1]}.{overload}")), None)
