"""What the processes of a pipeline tell each other of their layers, so that each knows the whole model's."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from ..attention.find import Attention
from ..capture.ranks import Ranks
from ..graph.captured import Captured, id_limit, vocabulary_of
from ..graph.stages import Stages
from ..upstream.process_groups import hand_offs

NODES = ("node", "query", "key", "value", "sink")  # of an attention; they can't be sent


def with_all_layers(
    captured: Captured, attentions: Sequence[Attention], ranks: Ranks
) -> tuple[Captured, list[Attention]]:
    """A stage's graph that knows the whole model's attentions, and its own, counted as the whole model's.

    Raises:
        RanksError: the stages don't fit together.
    """
    assert isinstance(captured.part, Stages)
    ranks.require_same(
        {
            "dtype": captured.dtype,
            "vocabulary": (vocabulary_of(captured), id_limit(captured.module)),
            "values handed on": [_form(node.meta["val"]) for node in hand_offs(captured.module.graph)],
            "what a call leaves behind": captured.left_behind,
        }
    )
    nothing: dict[str, Any] = dict.fromkeys(NODES)
    each = ranks.each([replace(a, **nothing) for a in attentions])
    whole = [attention for stage in each for attention in stage]
    first = sum(len(stage) for stage in each[: captured.part.rank])
    own = [replace(a, index=first + i) for i, a in enumerate(attentions)]
    numbered = tuple(replace(a, index=i) for i, a in enumerate(whole))
    return replace(captured, part=replace(captured.part, attentions=numbered)), own


def _form(value: torch.Tensor) -> str:
    return f"[..., {value.shape[-1]}] of {value.dtype}"
