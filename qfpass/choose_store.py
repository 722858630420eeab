"""Choose what a slot holds of a token: as few bits as change next to nothing, measured on the model."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from .attention.find import Attention
from .attention.spread_heads import heads_of_whole
from .capture.ranks import ALONE, Ranks
from .config import AUTO, STORE_KINDS, Config
from .filters.calibrate import model_fingerprint
from .filters.key_precision import KeyPrecision
from .filters.read_smoothing import read_smoothing
from .filters.self_written import OwnText
from .graph.captured import Captured
from .kernels.int4 import GROUP
from .rewriting.uncompressed import Uncompressed
from .store.int4_values import Int4ValueSlots
from .store.int8_slots import Int8Slots
from .waits import Wait

SMOOTHED = (Int8Slots, Int4ValueSlots)  # the stores whose keys are smoothed
CANDIDATES = ("int8-int4", torch.int8)  # the fewest bits first
MOST_NATS = 0.015  # a token; perplexity grows by about as many parts of one
ROWS, TOKENS, PIECE = 4, 96, 8  # of the text that is read; tokens that are read at a time


def choose_store(
    config: Config,
    captured: Captured,
    attentions: Sequence[Attention],
    context_length: int | None,
    own_text: OwnText,
    ranks: Ranks = ALONE,
) -> tuple[Config, tuple[torch.Tensor, ...] | None]:
    """The settings with `store_dtype` decided, and the factors of smoothing for each attention, if any.

    `context_length` is the model's own where it states one, so that a model's factors are the same whatever
    texts it is compiled for.
    """
    length = context_length or TOKENS
    if config.store is None and config.store_dtype == AUTO:
        if not _may_choose(config, captured, length):
            return replace(config, store_dtype=None), None
        measured = key_precision(captured, attentions, length, own_text, ranks)
        good = [c for c in CANDIDATES if measured.nats.get(str(c), math.inf) <= MOST_NATS]
        chosen = good[0] if good else None
        return replace(config, store_dtype=chosen), measured.smoothing if chosen else None
    if config.store_kind not in SMOOTHED:
        return config, None
    return config, _of_whole(captured, attentions, read_smoothing(captured, attentions, length))


def _may_choose(config: Config, captured: Captured, length: int) -> bool:
    """Whether few bits are of use and can be measured.

    That takes a ratio, texts not too short, a processor, no key that moves, and predictions to compare.
    """
    compresses = config.ratio is not None and config.ratio > 1 and captured.predicts
    compresses &= (config.context_length or length) >= TOKENS
    return compresses and captured.device.type == "cpu" and config.overflow != "rerotate"


def key_precision(
    captured: Captured, attentions: Sequence[Attention], length: int, own_text: OwnText, ranks: Ranks = ALONE
) -> KeyPrecision:
    """What few bits cost this model, from the cache or measured on texts of its own.

    If one of the processes that run the model together, `ranks`, has no record, all of them measure.
    """
    fingerprint = model_fingerprint(captured, attentions)
    found = KeyPrecision.cached(fingerprint)
    if ranks.all(found is not None):
        assert found is not None
        factors = tuple(each.to(captured.device, captured.dtype) for each in found.smoothing)
        return replace(found, smoothing=factors)
    ids = own_text.joined(ROWS, TOKENS)
    with Wait("measuring how few bits keys and values need", "once a model; store_dtype=None needs none"):
        measured = _measure(captured, attentions, length, ids)
    measured = replace(measured, smoothing=_of_whole(captured, attentions, measured.smoothing))
    measured.keep(fingerprint)
    return measured


def _of_whole(
    captured: Captured, attentions: Sequence[Attention], factors: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """The factors of the whole model's layers and heads, of which this process may have read a part."""
    if captured.part is None:
        return tuple(factors)
    first = attentions[0].index
    return tuple(captured.part.joined(dict(enumerate(factors, first)), 0).values())


def _measure(
    captured: Captured, attentions: Sequence[Attention], length: int, ids: torch.Tensor
) -> KeyPrecision:
    smoothing, whole = read_smoothing(captured, attentions, length), heads_of_whole(captured, attentions)
    expected, nats = predictions(captured, attentions, ids, None), dict[str, float]()
    for candidate in CANDIDATES:
        if candidate == "int8-int4" and any(each.value_dim % GROUP for each in whole):
            continue
        said = predictions(captured, attentions, ids, candidate, smoothing)
        nats[str(candidate)] = float((expected.exp() * (expected - said)).sum(-1).mean())
        if nats[str(candidate)] <= MOST_NATS:
            break
    return KeyPrecision(smoothing, nats)


def predictions(
    captured: Captured,
    attentions: Sequence[Attention],
    ids: torch.Tensor,
    store_dtype: torch.dtype | str | None,
    smoothing: Sequence[torch.Tensor] | None = None,
) -> torch.Tensor:
    """Log-probabilities after every token, all keys kept in stores of this kind.

    Of few bits, few tokens are read at a time, since a chunk's own keys are exact.
    """
    program = Uncompressed(
        captured, attentions, ids.shape[1], len(ids), store_type=STORE_KINDS[store_dtype], smoothing=smoothing
    )
    pieces = [ids] if store_dtype is None else ids.split(PIECE, dim=1)
    return torch.cat([program.read(piece) for piece in pieces], dim=1).float().log_softmax(-1)
