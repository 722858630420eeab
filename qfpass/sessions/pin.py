"""Pinned tokens, which are never evicted: their slots have a score that no other token reaches."""

from collections.abc import Sequence

import torch

from ..capture.ranks import ALONE, Ranks
from ..errors import SessionError
from ..sizes import Sizes
from ..store.store_kind import StoreKind
from .stores import Stack, Stores

PINNED = torch.finfo(torch.float32).max  # below inf, the score of slots that a session doesn't use


def pin(
    stores: Stores,
    sizes: Sizes,
    read: Sequence[int],
    start: int,
    stop: int,
    row: int | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Pin the tokens at positions `start` to `stop` - 1 in every bounded store, in place.

    `read` counts the tokens that each row has read. Only `row` is pinned, or all rows if it is None. `ranks`
    are the processes that run the model together.

    Raises:
        SessionError: there are no such tokens, a store no longer holds one of them, or too few slots would be
            left for other tokens; nothing is pinned then. In another process it is a RanksError.
    """
    for scores, wanted in ranks.together(lambda: _places(stores, sizes, read, start, stop, row)):
        scores.masked_fill_(wanted, PINNED)


def _places(
    stores: Stores, sizes: Sizes, read: Sequence[int], start: int, stop: int, row: int | None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each bounded stack its scores, and where among them the tokens lie."""
    rows = range(len(read)) if row is None else (row,)
    least = min((read[r] for r in rows if r in range(len(read))), default=0)
    if not 0 <= start < stop <= least:
        raise SessionError(
            f"tokens {start} to {stop - 1} of rows {list(rows)} can't be pinned, since only {least} tokens "
            "have been read: read them first."
        )
    chosen = list[tuple[torch.Tensor, torch.Tensor]]()
    for stack in stores.stacks:
        if not stack.rule.is_bounded:
            continue
        store: StoreKind = stack.store  # type: ignore[assignment]
        wanted = (store.positions >= start) & (store.positions < stop)
        others = [i for i in range(wanted.shape[1]) if i not in rows]
        wanted[:, others] = False
        _require_held(stack, wanted[:, list(rows)].sum(-1), start, stop)
        takes_slot = store.positions >= sizes.sinks  # first tokens are kept anyway
        _require_room(stack, sizes, takes_slot & (wanted | (store.scores == PINNED)))
        chosen.append((store.scores, wanted))
    return chosen


def _require_held(stack: Stack, held: torch.Tensor, start: int, stop: int) -> None:
    """`held` [L, rows, Hkv]: how many of the tokens each head holds."""
    if (least := int(held.min())) < stop - start:
        layer = stack.layers[int((held == least).nonzero()[0, 0])]
        raise SessionError(
            f"{stop - start - least} of the tokens at positions {start} to {stop - 1} are no longer held by "
            f"attention {layer}: read them in a call of their own, no more than there are slots, and pin "
            "them right after it."
        )


def _require_room(stack: Stack, sizes: Sizes, pinned: torch.Tensor) -> None:
    """`pinned` [L, B, Hkv, C]: the slots that would be pinned, beside the first tokens'."""
    slots = sizes.slots_of(stack.rule.share)
    most = slots - sizes.recent - sizes.sinks - 1
    if (count := int(pinned.sum(-1).max())) > most:
        raise SessionError(
            f"{count} pinned tokens don't fit in {slots} slots beside the first {sizes.sinks} and the newest "
            f"{sizes.recent}, which are never evicted: pin at most {most}, or compile with a larger budget "
            "or a smaller recent."
        )
