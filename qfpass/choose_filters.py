"""Filters that fit a model: given, cached, published, or calibrated on the spot."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from .config import Config
from .errors import ConfigError, FilterFileError
from .filters import QFilters, TrainedFilters, find_cached, find_on_hub, load_filters, store_cached
from .filters.calibrate import calibrate_captured, model_fingerprint
from .filters.self_written import ROWS, TOKENS, write_text
from .graph.attention import Attention
from .graph.call import own_context_length
from .graph.capture import Captured
from .graph.ranks import ALONE, Ranks
from .runtime.uncompressed import Uncompressed
from .store.scores import SCORES

log = logging.getLogger(__name__)


def given_filters(config: Config, attentions: Sequence[Attention]) -> QFilters | TrainedFilters | None:
    """The filters of `config`, None if it has none.

    Raises:
        ConfigError: they are of another kind than the score reads.
        FilterFileError, FilterMismatchError: they can't be read, or belong to another model.
    """
    filters = config.filters
    if isinstance(filters, str | Path):
        filters = load_filters(filters)
    if filters is None:
        if config.score == "trained":
            raise ConfigError(
                "score='trained' reads filters that qfpass.train made for this model: give filters="
            )
        return None
    if config.score is not None and SCORES[config.score].needs_filters and config.score != filters.score:
        raise ConfigError(
            f"score={config.score!r} doesn't read the filters that were given, which are for the "
            f"{filters.score!r} score: leave score out, or give other filters."
        )
    filters.check(attentions)
    return filters


def layer_shares(
    filters: QFilters | TrainedFilters | None, config: Config, attentions: Sequence[Attention]
) -> tuple[float, ...]:
    """Each layer's part of the slots, over the mean: what the filters say, if the score reads them."""
    if filters is None or config.score != filters.score:
        return (1.0,) * len(attentions)
    return filters.shares


def within(shares: Sequence[float], largest: float) -> tuple[float, ...]:
    """Shares of at most `largest`, what is cut off shared out among the others; the mean stays."""
    if largest <= 1:
        return tuple(min(share, 1.0) for share in shares)
    spread = list(shares)
    while max(spread) > largest * (1 + 1e-9):
        free = [i for i, share in enumerate(spread) if share < largest]
        held = [min(share, largest) for share in spread]
        lost = sum(spread) - sum(held)
        factor = 1 + lost / sum(spread[i] for i in free)
        spread = [share * factor if share < largest else largest for share in spread]
    return tuple(spread)


def find_or_make_filters(
    model: nn.Module,
    captured: Captured,
    attentions: Sequence[Attention],
    context_length: int,
    ranks: Ranks = ALONE,
) -> QFilters:
    """Q-Filters from the cache or the hub, or made on the spot.

    Processes that run the model together, `ranks`, all make them if one of them has found none.
    """
    found = ranks.together(lambda: _found(model, captured, attentions))
    if ranks.all(found is not None):
        assert found is not None
        return found
    made = _made(captured, attentions, own_context_length(model) or context_length)
    made.check(attentions)
    return made


def _found(model: nn.Module, captured: Captured, attentions: Sequence[Attention]) -> QFilters | None:
    """From the cache or the hub; they fit the model or an error is raised."""
    found = find_cached(model_fingerprint(captured, attentions))
    if found is None:
        found = find_on_hub(getattr(getattr(model, "config", None), "name_or_path", None))
    if found is not None:
        found.check(attentions)
    return found


def _made(captured: Captured, attentions: Sequence[Attention], context_length: int) -> QFilters:
    """Calibrate on text that the model writes itself, and keep the result for the next time."""
    console = Console(file=sys.stderr)
    progress = console.is_terminal
    rows, tokens = captured.batch or ROWS, min(TOKENS, context_length)
    program = Uncompressed(captured, attentions, capacity=tokens, batch=rows)
    (logits,) = captured.module.graph.output_node().all_input_nodes
    vocabulary = int(logits.meta["val"].shape[-1])
    first = torch.randint(vocabulary, (rows, 1), generator=torch.Generator().manual_seed(0))
    text = write_text(program.read, first.to(captured.device), tokens, progress)
    filters = calibrate_captured(
        captured,
        attentions,
        [text],
        sequence_length=tokens,
        context_length=context_length,
        source={
            "data": f"{rows} x {tokens} tokens that the model wrote itself",
            "fingerprint": model_fingerprint(captured, attentions),
        },
        progress=progress,
    )
    console.print(
        f"qfpass: no filters were found for this model, so it wrote {rows} x {tokens} tokens and was "
        f"calibrated on them{_keep(filters)}. Filters that qfpass.train makes from your kind of text keep "
        "more of it."
    )
    return filters


def _keep(filters: QFilters) -> str:
    try:
        return f"; kept in {store_cached(filters)}"
    except FilterFileError as error:
        log.warning("%s", error)
        return " (not kept: the cache folder can't be written)"
