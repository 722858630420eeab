"""Filters that fit a model: given, cached, published, or calibrated on the spot."""

import logging
import sys
from collections.abc import Sequence

import torch
from rich.console import Console
from torch import nn

from .config import Config
from .errors import FilterFileError
from .filters import QFilters, find_cached, find_on_hub, store_cached
from .filters.calibrate import calibrate_captured, model_fingerprint
from .filters.self_written import ROWS, TOKENS, write_text
from .graph.attention import Attention
from .graph.capture import Captured
from .runtime.uncompressed import Uncompressed

log = logging.getLogger(__name__)


def choose_filters(
    model: nn.Module, captured: Captured, attentions: Sequence[Attention], config: Config
) -> QFilters:
    """The filters of `config`, or some found or made; they fit the model or an error is raised."""
    filters = _given(config) or _found(model, captured, attentions)
    if filters is None:
        filters = _made(captured, attentions)
    filters.check(attentions)
    return filters.to(captured.device)


def _given(config: Config) -> QFilters | None:
    if config.filters is None or isinstance(config.filters, QFilters):
        return config.filters
    return QFilters.load(config.filters)


def _found(model: nn.Module, captured: Captured, attentions: Sequence[Attention]) -> QFilters | None:
    cached = find_cached(model_fingerprint(captured, attentions))
    if cached is not None:
        return cached
    name = getattr(getattr(model, "config", None), "_name_or_path", None)
    return find_on_hub(name)


def _made(captured: Captured, attentions: Sequence[Attention]) -> QFilters:
    """Calibrate on text that the model writes itself, and keep the result for the next time."""
    console = Console(file=sys.stderr)
    progress = console.is_terminal
    rows = captured.batch or ROWS
    program = Uncompressed(captured, attentions, capacity=TOKENS, batch=rows)
    (logits,) = captured.module.graph.output_node().all_input_nodes
    vocabulary = int(logits.meta["val"].shape[-1])
    first = torch.randint(vocabulary, (rows, 1), generator=torch.Generator().manual_seed(0))
    text = write_text(program.read, first.to(captured.device), TOKENS, progress)
    filters = calibrate_captured(
        captured,
        attentions,
        [text],
        sequence_length=TOKENS,
        source={
            "data": f"{rows} x {TOKENS} tokens that the model wrote itself",
            "fingerprint": model_fingerprint(captured, attentions),
        },
        progress=progress,
    )
    console.print(
        f"qfpass: no filters were found for this model, so it wrote {rows} x {TOKENS} tokens and was "
        f"calibrated on them{_keep(filters)}. Filters from your own kind of text are better: "
        "filters=qfpass.calibrate(model, data)."
    )
    return filters


def _keep(filters: QFilters) -> str:
    try:
        return f"; kept in {store_cached(filters)}"
    except FilterFileError as error:
        log.warning("%s", error)
        return " (not kept: the cache folder can't be written)"
