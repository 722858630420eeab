"""Collectives that a graph can hold, and the process groups of those in a graph."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
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


@Needed
def summed_over(part: torch.Tensor, group: Any) -> torch.Tensor:
    """The sum of all processes' tensors, as a new tensor.

    Without it: a model whose weights are spread over processes can't be compiled.
    """
    from torch.distributed._functional_collectives import all_reduce

    total: torch.Tensor = all_reduce(part, "sum", group)
    return total


@Needed
def joined_over(part: torch.Tensor, group: Any) -> torch.Tensor:
    """All processes' tensors, of equal shapes, joined along the last dimension.

    Without it: a model whose weights are spread over processes can't be compiled.
    """
    from torch.distributed._functional_collectives import all_gather_tensor

    whole: torch.Tensor = all_gather_tensor(part.contiguous(), part.dim() - 1, group)
    return whole


@Needed
def handed_on(value: torch.Tensor, group: Any, source: int) -> torch.Tensor:
    """The tensor of the process `source` of a group, as a new tensor; all have one of this shape and dtype.

    Without it: a model whose layers are split over processes can't be compiled.
    """
    from torch.distributed._functional_collectives import broadcast

    given: torch.Tensor = broadcast(value, source, group)
    return given


@Needed
def hand_offs(graph: fx.Graph) -> list[fx.Node]:
    """The values in a graph that `handed_on` gave, in order.

    Without it: processes that run a pipeline may not run the same collectives.
    """
    broadcast, wait = (
        torch.ops._c10d_functional.broadcast.default,
        torch.ops._c10d_functional.wait_tensor.default,
    )
    return [n for n in graph.nodes if n.target is wait and n.all_input_nodes[0].target is broadcast]


def gathered_by_name(part: torch.Tensor, size: int, group_name: str) -> torch.Tensor:
    """The tensors of all `size` processes of a group, [size, *part.shape]; Dynamo can trace it.

    Without it: filters that read all heads couldn't be used where each process has a part of them.
    """
    operators = torch.ops._c10d_functional
    every = operators.all_gather_into_tensor(part.contiguous(), size, group_name)
    whole: torch.Tensor = operators.wait_tensor(every)
    return whole.unflatten(0, (size, part.shape[0]))


@contextmanager
def timeouts_of(groups: Sequence[Any], longest: timedelta) -> Iterator[None]:
    """Inside, a collective of these groups fails after `longest`, if not before.

    Without it: processes wait for one that has failed as long as their groups' own timeouts say.
    """
    from torch.distributed.distributed_c10d import _set_pg_timeout

    before = [_timeout_of(group) for group in groups]
    try:
        for group, own in zip(groups, before, strict=True):
            _set_pg_timeout(min(own, longest), group)
        yield
    finally:
        for group, own in zip(groups, before, strict=True):
            _set_pg_timeout(own, group)


def _timeout_of(group: Any) -> timedelta:
    own: timedelta = group._get_backend(group._device_types[0]).options._timeout
    return own


def is_lost(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, is that another process of a group doesn't answer.

    Without it: such an error is taken for the model's own.
    """
    seen: BaseException | None = error
    while seen is not None:
        text = str(seen)
        if isinstance(seen, torch.distributed.DistError) or "gloo/transport" in text or "gloo:" in text:
            return True
        seen = seen.__cause__ or seen.__context__
    return False
