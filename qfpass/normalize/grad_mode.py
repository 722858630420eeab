"""Inline the parts that run with gradients on, which torch.export puts into graphs of their own."""

from operator import getitem
from typing import Any

from torch import fx

from ..graph.module_paths import get_by_path, set_by_path
from ..graph.nodes import args_of
from ..upstream.export import grad_mode_call


def write_out_grad_mode(module: fx.GraphModule) -> None:
    """Inline the graphs of grad modes into the graph of `module`, in place; their values don't change."""
    graph = module.graph
    for node in list(graph.nodes):
        if call := grad_mode_call(node):
            body = get_by_path(module, call.body.target)
            places = [inner for inner in body.graph.nodes if inner.op == "placeholder"]
            copies = dict(zip(places, call.operands, strict=True))
            with graph.inserting_before(node):
                results: Any = graph.graph_copy(body.graph, copies)
            for inner, copy in copies.items():
                if inner.op == "get_attr":
                    copy.target = f"{call.body.target}_{inner.target}"
                    set_by_path(module, copy.target, get_by_path(body, inner.target))
            for user in list(node.users):
                assert user.target is getitem
                user.replace_all_uses_with(results[args_of(user)[1]])
                graph.erase_node(user)
            graph.erase_node(node)
            graph.erase_node(call.body)
            delattr(module, str(call.body.target))
