"""What a split module computes in one process, by transformers' name for the way in which it is split.

Each function takes a module whose weights are this process's parts, and the processes' `Group`. It gives the
module's forward with collectives that a graph can hold: functional ones, which return a new tensor. What
crosses between processes is what transformers' own forward sends.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from ..upstream.process_groups import joined_over, summed_over

Forward = Callable[..., Any]


class Group(NamedTuple):
    """The processes among which a model is split: this one's number, how many, and their process group."""

    rank: int
    size: int
    processes: Any

    def summed(self, part: torch.Tensor) -> torch.Tensor:
        """The sum of all processes' parts."""
        return summed_over(part, self.processes)

    def joined(self, part: torch.Tensor, size: int) -> torch.Tensor:
        """All parts along the last dimension, which has `size` numbers in all; later parts may be shorter."""
        most = -(-size // self.size)
        part = functional.pad(part, (0, most - part.shape[-1])) if size % self.size else part
        whole = joined_over(part, self.processes)
        return whole[..., :size] if size % self.size else whole


def _own(module: nn.Module, group: Group) -> Forward:
    forward: Forward = type(module).forward.__get__(module)
    return forward


def _columns_joined(module: Any, group: Group) -> Forward:
    own = _own(module, group)
    return lambda hidden: group.joined(own(hidden), module.out_features)


def _rows(module: Any, group: Group) -> Forward:
    def forward(hidden: torch.Tensor) -> torch.Tensor:
        total = group.summed(functional.linear(hidden, module.weight))
        return total if module.bias is None else total + module.bias

    return forward


def _rows_of_whole_input(module: Any, group: Group) -> Forward:
    rows = _rows(module, group)
    return lambda hidden: rows(hidden.chunk(group.size, -1)[group.rank])


def _embedding_by_ids(module: Any, group: Group) -> Forward:
    own, rows = _own(module, group), module.weight.shape[0]
    first = group.rank * -(-module.num_embeddings // group.size)

    def forward(ids: torch.Tensor) -> torch.Tensor:
        is_here = (ids >= first) & (ids < first + rows)
        found = own(torch.where(is_here, ids - first, 0))
        return group.summed(found * is_here[..., None])

    return forward


def _embedding_by_columns(module: Any, group: Group) -> Forward:
    own = _own(module, group)
    return lambda ids: group.joined(own(ids), module.embedding_dim)


def _summed(module: nn.Module, group: Group) -> Forward:
    own = _own(module, group)
    return lambda *args, **keywords: group.summed(own(*args, **keywords))


def _shared_identity(module: nn.Module, group: Group) -> Forward:
    own = _own(module, group)
    return lambda hidden, *args, **keywords: own(hidden / group.size, *args, **keywords)


FORWARDS: dict[str, Callable[[nn.Module, Group], Forward]] = {
    "all_reduce": _summed,
    "colwise": _own,
    "colwise_gather_output": _columns_joined,
    "colwise_rep": _columns_joined,
    "embedding_colwise": _embedding_by_columns,
    "embedding_rowwise": _embedding_by_ids,
    "local_params": _own,
    "mla_kv_a_proj": _own,
    "moe_identity_expert": _shared_identity,
    "moe_tp_experts": _summed,
    "packed_colwise": _own,
    "packed_rowwise": _own,
    "replicate": _own,
    "replicated_with_grad_allreduce": _own,
    "rowwise": _rows,
    "rowwise_rep": _rows,
    "rowwise_split_input": _rows_of_whole_input,
}
LINEAR = {"colwise", "colwise_gather_output", "colwise_rep", "rowwise", "rowwise_rep", "rowwise_split_input"}
EMBEDDING = {"embedding_colwise", "embedding_rowwise"}
