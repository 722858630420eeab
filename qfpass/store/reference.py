"""The whole idea on one page: attention over a store that never grows. Read this first.

`SlotAttention` does the same in place, under torch.compile, for whole batches; tests compare it with this.
"""

from collections.abc import Callable

import torch

ScoreFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class BoundedStore:
    """One layer's keys and values of a text: at most `slots` a head, whatever the text's length.

    Args:
        score: keys [B, H, S, D], values [B, H, S, Dv], positions [B, H, S] -> [B, H, S]; the lowest goes
            first.
        recent: newest tokens that are never evicted.
        sinks: first tokens that are never evicted.
    """

    def __init__(self, slots: int, recent: int, sinks: int, score: ScoreFunction) -> None:
        self.slots, self.recent, self.sinks, self.score = slots, recent, sinks, score
        self.seen = 0
        self.held: tuple[torch.Tensor, ...] = ()  # keys, values, positions, all [B, H, slots filled, ...]

    def read(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Attention [B, Hq, S, Dv] of the next S tokens; query head h reads key head h // (Hq / H).

        A single token is stored first and sees exactly what is held then. A longer piece sees what was held
        before and itself, causally; then the best of both are kept.
        """
        length = query.shape[2]
        position = torch.arange(self.seen, self.seen + length, device=key.device).expand(*key.shape[:2], -1)
        self.seen += length
        new = (key, value, position)
        if length == 1:
            self.held = self._best_of(new)
            keys, values, _ = self.held
            return attend(query, keys, values, hidden=None)
        keys, values, _ = self._with(new)
        held_before = keys.shape[2] - length
        hidden = torch.ones(length, keys.shape[2], dtype=torch.bool, device=key.device).triu(held_before + 1)
        out = attend(query, keys, values, hidden)
        self.held = self._best_of(new)
        return out

    def _with(self, new: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        if not self.held:
            return new
        return tuple(torch.cat(pair, dim=2) for pair in zip(self.held, new, strict=True))

    def _best_of(self, new: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """What is held of the old and the new: first tokens, newest tokens, then the highest scores."""
        keys, values, positions = self._with(new)
        protected = (positions < self.sinks) | (positions >= self.seen - self.recent)
        rank = self.score(keys, values, positions).masked_fill(protected, float("inf"))
        best = rank.topk(min(self.slots, rank.shape[2])).indices.sort().values
        kept = (x.gather(2, best[..., None].expand(-1, -1, -1, x.shape[3])) for x in (keys, values))
        return *kept, positions.gather(2, best)


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, hidden: torch.Tensor | None
) -> torch.Tensor:
    """softmax(query @ key^T / sqrt(D)) @ value, float32; `hidden` [Sq, Sk] says which keys aren't seen."""
    groups = query.shape[1] // key.shape[1]
    key, value = (x.float().repeat_interleave(groups, dim=1) for x in (key, value))
    logits = query.float() @ key.transpose(2, 3) / query.shape[3] ** 0.5
    if hidden is not None:
        logits = logits.masked_fill(hidden, float("-inf"))
    return logits.softmax(-1) @ value
