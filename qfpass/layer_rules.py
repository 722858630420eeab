"""The rule by which each layer keeps keys: a ring for its window, every key, or the best by score."""

from collections.abc import Callable, Sequence

from .attention.find import Attention
from .config import Config
from .filters import QFilters, TrainedFilters
from .graph.captured import Captured
from .rewriting.site import Rule
from .sizes import Sizes
from .store.kv_form import KVForm
from .store.ring import RingRule
from .store.scores import recency
from .store.slots import SLOT_NBYTES, SlotRule, Slots
from .store.store_kind import StoreKind, token_nbytes

ChooseRule = Callable[[Attention, Config, Sizes, float], Rule]


def layer_rule(attention: Attention, config: Config, sizes: Sizes, share: float) -> Rule:
    """The rule of one layer; `share` is its part of the slots, relative to the mean of all layers."""
    reach = attention.span.reach
    if reach is not None and (reach < sizes.context_length or config.overflow != "error"):
        return RingRule(reach, chunked=attention.span.chunk is not None)
    skipped = attention.index in config.skip_layers
    if skipped or sizes.slots >= sizes.context_length:
        return SlotRule(
            sizes.context_length, recent=1, sinks=0, score=recency, is_bounded=False,
            store_type=Slots if skipped else config.store_kind,
        )  # fmt: skip
    assert config.score is not None
    return SlotRule(
        sizes.slots_of(share), sizes.recent, sizes.sinks, config.score, share=share,
        store_type=config.store_kind,
    )  # fmt: skip


def slots_per_model_slot(attentions: Sequence[Attention], captured: Captured, kind: type[StoreKind]) -> float:
    """How many slots of this kind take the bytes of one in the model's dtype, with scores and positions."""

    def nbytes(kind: type[StoreKind]) -> int:
        return sum(
            token_nbytes(kind, KVForm.of(a, captured.dtype, captured.device)) + a.kv_heads * SLOT_NBYTES
            for a in attentions
        )

    return nbytes(Slots) / nbytes(kind)


def layer_shares(
    filters: QFilters | TrainedFilters | None, config: Config, attentions: Sequence[Attention]
) -> tuple[float, ...]:
    """Each layer's part of the slots, relative to the mean: the filters' shares if the score reads them."""
    if filters is None or config.score is None or config.score.filters != filters.score:
        return (1.0,) * len(attentions)
    return filters.shares


def shares_within(shares: Sequence[float], largest: float) -> tuple[float, ...]:
    """The shares, none above `largest`; what is cut off goes to the other layers, so that the mean stays.

    If `largest` is 1 or less, no layer has room for it: each share is at most 1.
    """
    if largest <= 1:
        return tuple(min(share, 1.0) for share in shares)
    result = list(shares)
    while max(result) > largest * (1 + 1e-9):
        free = [i for i, share in enumerate(result) if share < largest]
        capped = [min(share, largest) for share in result]
        cut_off = sum(result) - sum(capped)
        factor = 1 + cut_off / sum(result[i] for i in free)
        result = [share * factor if share < largest else largest for share in result]
    return tuple(result)
