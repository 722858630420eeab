"""Choose the filters for a model: given, cached, published, or calibrated on the spot."""

import logging
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from .attention.find import Attention
from .attention.spread_heads import heads_of_whole
from .capture.decoder_call import own_context_length
from .capture.ranks import ALONE, Ranks
from .config import Config
from .errors import ConfigError, FilterFileError
from .filters import (
    QFilters,
    TrainedFilters,
    find_cached,
    find_on_hub,
    find_tuned,
    load_filters,
    store_cached,
)  # fmt: skip
from .filters.calibrate import calibrate_captured, model_fingerprint
from .filters.self_written import OwnText
from .graph.captured import Captured
from .waits import Wait, say

log = logging.getLogger(__name__)


def load_given_filters(
    config: Config, captured: Captured, attentions: Sequence[Attention]
) -> QFilters | TrainedFilters | None:
    """The filters that `config` gives, or those that `qfpass.tune` made for this model; None without any.

    Raises:
        ConfigError: the score reads filters of another kind.
        FilterFileError, FilterMismatchError: the filters can't be read, or belong to another model.
    """
    filters = config.filters
    if isinstance(filters, str | Path):
        filters = load_filters(filters)
    if filters is None:
        filters = _find_tuned(config, captured, attentions)
        if filters is None and config.score is not None and config.score.filters == "trained":
            raise ConfigError(
                f"score={str(config.score)!r} reads filters that were trained for this model: call "
                "qfpass.tune once, or give filters="
            )
        return filters
    if config.score is not None and config.score.filters not in (None, filters.score):
        raise ConfigError(
            f"score={str(config.score)!r} doesn't read the filters that were given, which are for the "
            f"{filters.score!r} score: leave score out, or give other filters."
        )
    filters.check(heads_of_whole(captured, attentions))
    return filters


def _find_tuned(config: Config, captured: Captured, attentions: Sequence[Attention]) -> TrainedFilters | None:
    """Filters from `qfpass.tune`, if the score may be theirs and the settings allow it."""
    wanted = config.score is None or config.score.filters == "trained"
    if not wanted or (
        config.score is None and config.overflow == "rerotate"
    ):  # moved keys need another score
        return None
    found = find_tuned(model_fingerprint(captured, attentions))
    if found is not None:
        found.check(heads_of_whole(captured, attentions))
    return found


def find_or_make_filters(
    model: nn.Module,
    captured: Captured,
    attentions: Sequence[Attention],
    context_length: int,
    own_text: OwnText,
    ranks: Ranks = ALONE,
) -> QFilters:
    """Q-Filters for a model from the cache or the hub, else made on the spot from a text of its own.

    If one of the processes that run the model together, `ranks`, finds none, all of them make filters.
    """
    found = ranks.together(lambda: _find(model, captured, attentions))
    if ranks.all(found is not None):
        assert found is not None
        return found
    made = _make(captured, attentions, own_context_length(model) or context_length, own_text)
    made.check(heads_of_whole(captured, attentions))
    return made


def _find(model: nn.Module, captured: Captured, attentions: Sequence[Attention]) -> QFilters | None:
    """Q-Filters from the cache or the hub, None if there are none; raises if they don't fit the model."""
    found = find_cached(model_fingerprint(captured, attentions))
    if found is None:
        with Wait("looking for published filters", "seconds; HF_HUB_OFFLINE=1 needs none"):
            found = find_on_hub(getattr(getattr(model, "config", None), "name_or_path", None))
    if found is not None:
        found.check(heads_of_whole(captured, attentions))
    return found


def _make(
    captured: Captured, attentions: Sequence[Attention], context_length: int, own_text: OwnText
) -> QFilters:
    """Q-Filters calibrated on text that the model writes itself; they are stored in the cache."""
    say('no filters were found for this model, so it makes some, once; score="recency" needs none')
    rows, tokens = own_text.ids.shape
    filters = calibrate_captured(
        captured,
        attentions,
        [own_text.ids],
        sequence_length=tokens,
        context_length=context_length,
        source={
            "data": f"{rows} x {tokens} tokens that the model wrote itself",
            "fingerprint": model_fingerprint(captured, attentions),
        },
        progress=True,
    )
    say(
        f"the model wrote {rows} x {tokens} tokens and was calibrated on them{_keep(filters)}. qfpass.tune "
        "makes filters that keep more, without data: `qfpass tune MODEL`, once."
    )
    return filters


def _keep(filters: QFilters) -> str:
    """Store filters in the cache; returns words on where they are, or that they couldn't be written."""
    try:
        return f"; kept in {store_cached(filters)}"
    except FilterFileError as error:
        log.warning("%s", error)
        return " (not kept: the cache folder can't be written)"
