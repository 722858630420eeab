"""Which key goes first: one function a score, the lowest score is evicted.

Every score has the same form: keys [B, Hkv, S, D] and values [B, Hkv, S, Dv] as they stand in the
store (positions applied), positions [B, S] int64, filters [Hkv, D] float32 or None, and returns
[B, Hkv, S] float32. A key's score never changes, so keeping the best is exact however a text is cut.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

ScoreFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True)
class Score:
    """A named score and whether it reads filters."""

    function: ScoreFunction
    needs_filters: bool


def published(
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    filters: torch.Tensor | None,
) -> torch.Tensor:
    """The projection of the key on its head's Q-Filter (Godey et al. 2025, arXiv 2503.02812).

    E_Q<Q, k> is close to kappa <k, v1>, with v1 the main direction of the queries, so <k, v1> ranks
    keys by the attention that they can expect.
    """
    assert filters is not None, "the published score reads filters"
    return (keys.float() * filters[:, None, :]).sum(-1)


def recency(
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    filters: torch.Tensor | None,
) -> torch.Tensor:
    """The position itself: with sinks this is StreamingLLM (Xiao et al. 2023, arXiv 2309.17453).

    float32 counts tokens exactly up to 2^24.
    """
    return positions[:, None, :].expand(-1, keys.shape[1], -1).float()


SCORES = {
    "published": Score(published, needs_filters=True),
    "recency": Score(recency, needs_filters=False),
}
