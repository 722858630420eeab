"""Past the context length: stored keys are moved to earlier positions, so that positions stay in range.

Each head's keys keep their order: the sinks stay, the others move up to just before the position where the
text goes on, so that no two of them lie further apart than slots between them. What a window or the newest
tokens hold keeps its distances exactly.
"""

from collections.abc import Sequence

import torch
from torch import fx

from ..config import Config, Sizes
from ..errors import ConfigError
from ..graph.rewrite import Site
from ..graph.rotary import Positions, Turn
from ..store.ring import Ring, RingRule
from ..store.scores import SCORES
from ..store.slots import SlotRule, Slots
from .decoder import Decoder
from .rows import Row
from .session import Session


def find_turns(
    module: fx.GraphModule, sites: Sequence[Site], sizes: Sizes, config: Config
) -> list[Turn | None]:
    """What moves each site's stored keys, empty if none are moved; refuses an `overflow` that can't be.

    Raises:
        ConfigError: a layer keeps every key, or there is no room to go on in.
        UnsupportedOpError: the model's positions don't allow it.
    """
    if config.overflow == "error":
        return []
    whole = [s.attention.name for s in sites if not (s.is_ring or s.rule.is_bounded)]
    if whole:
        raise ConfigError(
            f"overflow={config.overflow!r} needs every layer bounded, but {', '.join(whole)} keeps every "
            "key: give a greater ratio or a smaller budget, and no skip_layers."
        )
    positions = Positions(module, sites)
    if config.overflow == "continue":
        positions.refuse_tables()
        return []
    chunked = [s.attention.name for s in sites if isinstance(s.rule, RingRule) and s.rule.chunked]
    if chunked:
        raise ConfigError(
            f"overflow='rerotate' would move the chunks that {', '.join(chunked)} counts from position 0: "
            "use overflow='continue' or 'error'."
        )
    if config.store_dtype is not None:
        raise ConfigError(
            "overflow='rerotate' would round moved keys anew each time, so it needs them in the model's own "
            "dtype: leave store_dtype out, or use overflow='continue' or 'error'."
        )
    if SCORES[config.score or "published"].reads_all_heads:
        raise ConfigError(
            f"overflow='rerotate' scores moved keys anew, which the {config.score} score can't, since it "
            "reads the keys of all heads at a token: use overflow='continue' or 'error', or another score."
        )
    start = restart(sites, sizes.slots)
    if start + sizes.chunk > sizes.context_length:
        raise ConfigError(
            f"overflow='rerotate' goes on from position {start}, which leaves no room for a chunk of "
            f"{sizes.chunk} in a context of {sizes.context_length}: lower the budget or the chunk."
        )
    return positions.turns()


def overflows(decoder: Decoder, row: Row, tokens: int) -> bool:
    """Whether so many more tokens would take a row past the range of its positions."""
    return bool(decoder.turns) and row.position + tokens > decoder.sizes.context_length


def bring_back(decoder: Decoder, session: Session, rows: Sequence[int], tokens: int) -> None:
    """Make room for so many tokens in the rows that have none."""
    for index in rows:
        row = session.rows[index]
        if not overflows(decoder, row, tokens):
            continue
        start = restart(decoder.sites, session.slots)
        for site, store, turn in zip(decoder.sites, session.stores_of(index), decoder.turns, strict=True):
            if isinstance(store, Ring):
                _move_ring(store, turn, start - row.position)
            else:
                assert isinstance(site.rule, SlotRule) and isinstance(store, Slots)
                filters = None
                if site.rule.needs_filters and decoder.filters is not None:
                    filters = decoder.filters.filters[site.attention.index]
                _move_slots(store, site.rule, turn, start, filters)
        session.place(index, start)


def restart(sites: Sequence[Site], slots: int) -> int:
    """The position where a text goes on: behind every key that is held."""
    return max([slots, *(site.rule.slots for site in sites if site.is_ring)])


def _move_ring(ring: Ring, turn: Turn | None, difference: int) -> None:
    slots = ring.keys.shape[2]
    moved = torch.full((1, slots), difference, device=ring.keys.device)
    keys = ring.keys if turn is None else turn(ring.keys, moved)
    # The token at position p lies in slot p mod w.
    ring.keys.copy_(keys.roll(difference % slots, dims=2))
    ring.values.copy_(ring.values.roll(difference % slots, dims=2))


def _move_slots(
    store: Slots, rule: SlotRule, turn: Turn | None, start: int, filters: torch.Tensor | None
) -> None:
    """One row's store [1, Hkv, C, ...]; slots that its session doesn't use stay as they are."""
    for head in range(store.keys.shape[1]):
        keys, values = store.keys[:, head : head + 1], store.values[:, head : head + 1]
        before = store.positions[0, head].long()
        after = _closed_up(before, rule.sinks, start)
        if turn is not None:
            # All heads turn, as the graph does; one of them by its own positions.
            keys.copy_(turn(store.keys, (after - before)[None])[:, head : head + 1])
        own = None if filters is None else filters[head : head + 1]
        scores = SCORES[rule.score].function(keys, values, after[None], own)[0, 0]
        held = before >= 0
        store.scores[0, head] = torch.where(held, scores, store.scores[0, head])
        store.positions[0, head] = after.to(store.positions.dtype)


def _closed_up(positions: torch.Tensor, sinks: int, start: int) -> torch.Tensor:
    """Positions [C], -1 where empty, in the same order without gaps: the sinks, then up to `start`."""
    rank = positions.argsort().argsort()
    moved = start - len(positions) + rank
    return torch.where(positions < sinks, positions, moved)
