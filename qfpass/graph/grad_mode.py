"""What runs with gradients switched on, which torch.export holds in a graph of its own, written out."""

from operator import getitem

from torch import fx

from ..upstream.export import grad_mode_call
from .held import held, hold


def write_out_grad_mode(module: fx.GraphModule) -> None:
    """Rewrite the graph of `module` in place: values are the same with gradients and without."""
    graph = module.graph
    for node in list(graph.nodes):
        if call := grad_mode_call(node):
            body = held(module, call.body.target)
            places = [inner for inner in body.graph.nodes if inner.op == "placeholder"]
            copies = dict(zip(places, call.operands, strict=True))
            with graph.inserting_before(node):
                results = graph.graph_copy(body.graph, copies)
            for inner, copy in copies.items():
                if inner.op == "get_attr":
                    copy.target = f"{call.body.target}_{inner.target}"
                    hold(module, copy.target, held(body, inner.target))
            for user in list(node.users):
                assert user.target is getitem
                user.replace_all_uses_with(results[user.args[1]])
                graph.erase_node(user)
            graph.erase_node(node)
            graph.erase_node(call.body)
            delattr(module, str(call.body.target))
