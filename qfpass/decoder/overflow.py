"""Texts longer than the context: move stored keys to earlier positions, so that positions stay in range.

Each head's keys keep their order. The first tokens (`sinks`) keep their positions; the others get consecutive
positions that end just before the position where the text goes on. The keys of a window and the newest tokens
were consecutive before, so their distances don't change.
"""

from collections.abc import Sequence

import torch
from torch import fx

from ..config import Config
from ..errors import ConfigError
from ..rewriting.rotary import Rotation, RotationFinder
from ..rewriting.site import Site
from ..sessions.pin import PINNED
from ..sessions.rows import Row
from ..sessions.session import Session
from ..sizes import Sizes
from ..store.layer import Layer
from ..store.ring import Ring, RingRule
from ..store.slots import SlotRule, Slots
from .decoder import Decoder


def find_rotations(
    module: fx.GraphModule, sites: Sequence[Site], layers: Sequence[Layer], sizes: Sizes, config: Config
) -> list[Rotation | None]:
    """For each attention the rotation that moves its stored keys; empty if `overflow` moves no keys.

    `layers` are those of the whole model, also where a process has some of them. An entry is None if that
    attention's keys don't depend on their positions.

    Raises:
        ConfigError: a layer keeps every key; or, where keys move, a layer is chunked, the stores have a dtype
            of their own, the score can't rank moved keys, or no chunk fits behind them.
        UnsupportedOpError: the model's positions don't allow it.
    """
    if config.overflow == "error":
        return []
    unbounded = [x.name for x in layers if not (x.is_ring or x.rule.is_bounded)]
    if unbounded:
        raise ConfigError(
            f"overflow={config.overflow!r} needs every layer bounded, but {', '.join(unbounded)} keeps every "
            "key: give a greater ratio or a smaller budget, and no skip_layers."
        )
    finder = RotationFinder(module, sites)
    if config.overflow == "continue":
        finder.refuse_tables()
        return []
    chunked = [x.name for x in layers if isinstance(x.rule, RingRule) and x.rule.chunked]
    if chunked:
        raise ConfigError(
            f"overflow='rerotate' would move keys between the chunks of {', '.join(chunked)}, which are "
            "counted from position 0: use overflow='continue' or 'error'."
        )
    if config.store_kind is not Slots:
        raise ConfigError(
            "overflow='rerotate' would round moved keys anew each time, so it needs them in the model's own "
            "dtype: leave store_dtype and store out, or use overflow='continue' or 'error'."
        )
    if config.score is not None and config.score.reads_all_heads:
        raise ConfigError(
            f"overflow='rerotate' scores moved keys anew, which the {config.score} score can't, since it "
            "reads the keys of all heads at a token: use overflow='continue' or 'error', or another score."
        )
    start = restart_position(layers, sizes.slots)
    if start + sizes.chunk > sizes.context_length:
        raise ConfigError(
            f"overflow='rerotate' goes on from position {start}, which leaves no room for a chunk of "
            f"{sizes.chunk} in a context of {sizes.context_length}: lower the budget or the chunk."
        )
    return finder.rotations()


def overflows(decoder: Decoder, row: Row, tokens: int) -> bool:
    """Whether keys must be moved before the row reads `tokens` more tokens, to stay within the context."""
    return bool(decoder.rotations) and row.position + tokens > decoder.sizes.context_length


def move_keys_back(decoder: Decoder, session: Session, rows: Sequence[int], tokens: int) -> None:
    """Move the stored keys of those `rows` that have no positions left for `tokens` more tokens, in place."""
    for index in rows:
        row = session.rows[index]
        if not overflows(decoder, row, tokens):
            continue
        start = restart_position(decoder.whole_layers, session.slots)
        for layer, store, rotation in zip(
            decoder.layers, session.stores_of(index), decoder.rotations, strict=True
        ):
            if isinstance(store, Ring):
                _move_ring(store, rotation, start - row.position)
            else:
                assert isinstance(layer.rule, SlotRule) and isinstance(store, Slots)
                filters = None
                if layer.rule.needs_filters:
                    filters = decoder.inputs.filters_for(session.slots)[layer.index]
                _move_slots(store, layer.rule, rotation, start, filters)
        session.set_position(index, start)
        session.make_final("the stored keys were moved to earlier positions")


def restart_position(layers: Sequence[Layer], slots: int) -> int:
    """The position where a text goes on after its keys have moved: behind every key in the stores."""
    return max([slots, *(layer.rule.slots for layer in layers if layer.is_ring)])


def _move_ring(ring: Ring, rotation: Rotation | None, difference: int) -> None:
    """Move one row's ring [1, Hkv, w, ...] by `difference` positions, in place."""
    slots = ring.keys.shape[2]
    moved = torch.full((1, slots), difference, device=ring.keys.device)
    keys = ring.keys if rotation is None else rotation(ring.keys, moved)
    # The token at position p is in slot p mod w.
    ring.keys.copy_(keys.roll(difference % slots, dims=2))
    ring.values.copy_(ring.values.roll(difference % slots, dims=2))


def _move_slots(
    store: Slots, rule: SlotRule, rotation: Rotation | None, start: int, filters: torch.Tensor | None
) -> None:
    """Move one row's keys, in a store [1, Hkv, C, ...], to positions before `start`, and score them anew.

    Slots that the session doesn't use keep their score, inf.
    """
    for head in range(store.keys.shape[1]):
        before = store.positions[0, head].long()
        after = _without_gaps(before, rule.sinks, start)
        if rotation is not None:
            # The rotation takes all heads at one set of positions, but each head has its own.
            rotated = rotation(store.keys, (after - before)[None])
            store.keys[:, head] = rotated[:, head]
        # A score may differ by head, so it gets all of them.
        scores = rule.score(store.keys, store.values, after[None], filters)[0, head].float()
        held = (before >= 0) & (store.scores[0, head] != PINNED)
        store.scores[0, head] = torch.where(held, scores, store.scores[0, head])
        store.positions[0, head] = after.to(store.positions.dtype)


def _without_gaps(positions: torch.Tensor, sinks: int, start: int) -> torch.Tensor:
    """New positions [C] for positions [C], -1 where empty: consecutive up to `start` - 1, in the same order.

    The first `sinks` positions and empty slots stay as they are.
    """
    rank = positions.argsort().argsort()
    moved = start - len(positions) + rank
    return torch.where(positions < sinks, positions, moved)
