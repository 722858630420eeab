"""Buffers that a forward writes: values of the call if written before they are read, else state, refused."""

import torch
from torch import fx

from ..errors import CaptureError
from ..graph.dependence import SHAPE_ONLY
from ..graph.nodes import args_of, gives_views
from ..graph.subgraph import ancestors
from ..upstream.operators import written_arguments

aten = torch.ops.aten


def rewrite_written_buffers(graph: fx.Graph) -> None:
    """Remove the writes to buffers from `graph`, in place: later nodes read what was copied there instead.

    A write that doesn't reach the logits is removed too.

    Raises:
        CaptureError: the logits of a call depend on what earlier calls have written.
    """
    for node in list(graph.nodes):
        buffer = _written(node)
        if buffer is None:
            continue
        order = {n: i for i, n in enumerate(graph.nodes)}
        readers = _readers(graph, str(buffer.target)) - {node}
        before = {reader for reader in readers if order[reader] < order[node]}
        if node.target is aten.copy_.default and args_of(node)[0] is buffer and not before:
            _use_what_is_written(node, buffer, readers)
        elif node.users or readers & ancestors([graph.output_node()]):
            raise CaptureError(
                f"the forward writes {buffer.target} while it reads a text ({node.target}), so its results "
                "depend on earlier calls, and a session doesn't store that. If this is the model's own "
                "cache, don't set it up: a session takes its place."
            )
        else:
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _written(node: fx.Node) -> fx.Node | None:
    """The get_attr node of the tensor that `node` changes in place, maybe by a view; None without one."""
    for place, name in written_arguments(node.target):
        changed = args_of(node)[place] if place < len(args_of(node)) else node.kwargs.get(name)
        while isinstance(changed, fx.Node) and changed.op == "call_function" and gives_views(changed):
            changed = args_of(changed)[0]
        if isinstance(changed, fx.Node) and changed.op == "get_attr" and "detach_" not in str(node.target):
            return changed
    return None


def _readers(graph: fx.Graph, path: str) -> set[fx.Node]:
    """The nodes that read the values of the attribute at `path`, not its shape alone."""
    return {
        user
        for node in graph.nodes
        if node.op == "get_attr" and node.target == path
        for user in node.users
        if user.target not in SHAPE_ONLY
    }


def _use_what_is_written(node: fx.Node, buffer: fx.Node, readers: set[fx.Node]) -> None:
    """Let `readers` of a buffer read what the copy_ call `node` writes to it, and erase that call."""
    graph, like = node.graph, node.meta["val"]
    with graph.inserting_before(node):
        value = graph.call_function(aten.to.dtype, (args_of(node)[1], like.dtype))
        value = graph.call_function(aten.expand.default, (value, list(like.shape)))
    for new in (args_of(value)[0], value):
        new.meta = dict(node.meta)
    for reader in readers:
        for given in list(reader.all_input_nodes):
            if given.op == "get_attr" and given.target == buffer.target:
                reader.replace_input_with(given, value)
    node.replace_all_uses_with(value)
    graph.erase_node(node)
