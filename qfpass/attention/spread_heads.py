"""Which of the whole model's attentions and heads a process has."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import fx

from ..errors import UnsupportedOpError
from ..graph.captured import Captured
from ..graph.nodes import attribute
from ..graph.shards import Shards
from ..graph.stages import Stages
from ..upstream.process_groups import is_collective
from .find import Attention


class Heads(NamedTuple):
    """The sizes of one attention of the whole model."""

    query_heads: int
    kv_heads: int
    head_dim: int
    value_dim: int


def heads_of_whole(captured: Captured, attentions: Sequence[Attention]) -> list[Heads]:
    """The attentions' sizes in the whole model, of which this process may have a part."""
    part, whole = captured.part, attentions_of_whole(captured, attentions)
    times = part.size if isinstance(part, Shards) and part.splits_heads else 1
    return [Heads(a.query_heads * times, a.kv_heads * times, a.head_dim, a.value_dim) for a in whole]


def attentions_of_whole(captured: Captured, attentions: Sequence[Attention]) -> Sequence[Attention]:
    """The attentions of all layers of the whole model; other processes' have no nodes.

    Where heads are split, each is of this process's heads.
    """
    return captured.part.attentions if isinstance(captured.part, Stages) else attentions


def splits_heads(captured: Captured, attentions: Sequence[Attention]) -> bool:
    """Whether each process has its own heads of every attention, and not all of them.

    Raises:
        UnsupportedOpError: some operands are split by heads and others aren't.
    """
    part = captured.part
    assert isinstance(part, Shards)
    found = {
        (a.name, what): _is_made_of_parts(captured, part, node)
        for a in attentions
        for what, node in (("queries", a.query), ("keys", a.key), ("values", a.value))
    }
    if len(set(found.values())) > 1:
        whole = next(f"{what} of {name}" for (name, what), is_part in found.items() if not is_part)
        raise UnsupportedOpError(
            f"heads are split over {part.size} processes, but each has all {whole}: the number of processes "
            "must divide the query heads and the key heads, and the tp_plan must split query, key and value."
        )
    return next(iter(found.values()))


def _is_made_of_parts(captured: Captured, shards: Shards, node: fx.Node) -> bool:
    """Whether a weight that is split lies between a value and the collectives before it."""
    seen, waiting = set[fx.Node](), [node]
    while waiting:
        node = waiting.pop()
        if node in seen or is_collective(node):
            continue
        seen.add(node)
        if node.op == "get_attr" and shards.is_part(attribute(captured.module, node)):
            return True
        waiting += node.all_input_nodes
    return False
