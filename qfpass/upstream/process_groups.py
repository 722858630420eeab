"""Finds the process groups of the collectives in a graph."""

from typing import Any

from torch import fx

from .entry import Needed

_NAMESPACES = ("_c10d_functional", "_c10d_functional_autograd", "c10d")


@Needed
def is_collective(node: fx.Node) -> bool:
    """Whether a node runs a collective, or waits for one.

    Without it: values that processes exchange would be taken for values that tokens do.
    """
    return getattr(node.target, "namespace", None) in _NAMESPACES


@Needed
def groups_joined_by(graph: fx.Graph) -> list[Any]:
    """The process groups whose collectives a graph runs, in the order of first use.

    Without it: processes that run one model together couldn't see that they do the same.
    """
    from torch.distributed.distributed_c10d import ProcessGroup, _resolve_process_group

    groups = list[ProcessGroup]()
    for node in graph.nodes:
        if not is_collective(node):
            continue
        group = node.kwargs.get("group_name", node.args[-1] if node.args else None)  # wait nodes have none
        if isinstance(group, str):
            group = _resolve_process_group(group)  # type: ignore[arg-type]  # a NewType of str
        if isinstance(group, ProcessGroup) and group not in groups:
            groups.append(group)
    return groups
