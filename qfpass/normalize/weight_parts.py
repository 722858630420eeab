"""Let a graph read the parts of quantised weights by themselves, as plain tensors."""

from torch import fx

from ..upstream.export import part_read


def rewrite_weight_parts(graph: fx.Graph) -> None:
    """Replace each reading of a part of a tensor subclass by an attribute of its own, in place.

    torch.export writes a subclass's operators out over its parts. What is left to do is to read
    `weight.qdata` instead of `weight` and then its `qdata`: parts are weights like others then, which layers
    of one kind take as operands.
    """
    for node in list(graph.nodes):
        read = part_read(node)
        if read is None or read[0].op != "get_attr":
            continue
        whole, name = read
        node.op, node.target, node.args = "get_attr", f"{whole.target}.{name}", ()
        whole.prepend(node)
        if not whole.users:
            graph.erase_node(whole)
