"""In-place operations written as the ones that give a new value, where nothing else sees the change."""

import torch
from torch import fx

from .dependence import SHAPE_ONLY

aten = torch.ops.aten
# Composite operations that never give a view, though their schemas don't say so.
_FRESH = {aten.linear.default, aten.matmul.default, aten.softmax.int}


def spell_out_of_place(graph: fx.Graph) -> None:
    """Rewrite `graph` in place: x.add_(y) on a fresh x becomes x + y; what may be a view is left alone."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        twin = _out_of_place(node)
        if twin is None or not _is_fresh(node.args[0]):
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


def _out_of_place(node: fx.Node) -> torch._ops.OpOverload | None:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or not target._schema.name.endswith("_"):
        return None
    arguments = target._schema.arguments
    changes_first = [a.alias_info is not None and a.alias_info.is_write for a in arguments]
    if changes_first[:1] != [True] or any(changes_first[1:]) or not isinstance(node.args[0], fx.Node):
        return None
    namespace, name = target._schema.name.split("::")
    packet = getattr(getattr(torch.ops, namespace), name[:-1], None)
    return getattr(packet, target._overloadname, None)


def _is_fresh(node: fx.Node) -> bool:
    """Whether a node's value is its own memory."""
    return isinstance(node.target, torch._ops.OpOverload) and not gives_views(node)


def gives_views(node: fx.Node) -> bool:
    """Whether an operation may give a view of its input; reshape and contiguous give one at times."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return True
    aliases = any(a.alias_info is not None for a in target._schema.returns)
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CompositeImplicitAutograd")
    return aliases or (composite and target not in _FRESH)
