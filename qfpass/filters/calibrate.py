"""Calibration: computes Q-Filters from the queries that a captured decoder makes on a text."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from ..attention.find import Attention, find_attentions
from ..capture.decoder_call import own_context_length
from ..capture.export import capture
from ..capture.original import original_of
from ..capture.ranks import Ranks
from ..errors import InputError
from ..graph.captured import Captured
from ..waits import Wait
from .fingerprints import fingerprint
from .operand_reader import operand_reader
from .q_filters import QFilters
from .query_statistics import QueryStatistics
from .whole_fingerprint import as_part_of_whole

SEQUENCE_LENGTH = 2048  # tokens, as in the paper
TOGETHER = 512  # tokens of short sequences that are read at a time


def calibrate(
    model: nn.Module,
    data: Iterable[Any],
    *,
    sequence_length: int = SEQUENCE_LENGTH,
    context_length: int | None = None,
    description: str = "",
    progress: bool = True,
) -> QFilters:
    """Q-Filters of `model`, computed from its queries on `data` (Godey et al. 2025, arXiv 2503.02812).

    The queries are those that the attentions read, after rotation and norms. Their positions matter more
    than the text, since a rotary embedding rotates the main direction with the position (docs/quality.md).
    The sequences therefore start at positions spread evenly over `context_length`. Memory use is one
    sequence's activations and one [D, D] matrix per query head, however long the data is.

    Args:
        model: a decoder that `qfpass.compile` takes, or a compiled model that it returned.
        data: an iterable of token ids: lists, or tensors [S] or [B, S]; the paper uses 20 sequences of
            2,048 tokens.
        sequence_length: longer sequences are split into pieces of at most this many tokens.
        context_length: length in tokens of the texts that the filters are for; by default the model's own
            context length. If the model states none, every sequence starts at position 0; so it does in the
            paper's set-up, `context_length=sequence_length`.
        description: says what the data is; saved with the filters.
        progress: say how far it is.

    Raises:
        InputError: there is no data, it is text, ids aren't integers, or `context_length` is below 1.
        RanksError: the model is split over processes, and it can't be read in another one.
    """
    if context_length is not None and context_length < 1:
        raise InputError(f"context_length must be at least 1 token, not {context_length}.")
    original = original_of(model)
    ranks = Ranks.of_model(original)
    with Wait("tracing the model", shown=progress):
        captured = ranks.together(lambda: capture(original))
    attentions = ranks.together(lambda: find_attentions(captured, None))
    captured, attentions = as_part_of_whole(captured, attentions, ranks)
    return calibrate_captured(
        captured,
        attentions,
        data,
        sequence_length=sequence_length,
        context_length=context_length or own_context_length(original),
        source={"data": description, "fingerprint": model_fingerprint(captured, attentions)},
        progress=progress,
    )


def calibrate_captured(
    captured: Captured,
    attentions: Sequence[Attention],
    data: Iterable[Any],
    *,
    sequence_length: int,
    context_length: int | None,
    source: dict[str, Any],
    progress: bool,
) -> QFilters:
    """Q-Filters of a captured decoder; see `calibrate`.

    `source` goes into the filters' own `source`, with the two lengths added.
    """
    statistics, first = QueryStatistics(attentions), attentions[0].index
    reader = operand_reader(
        captured.module,
        attentions,
        lambda attention, query, _: statistics.update(attention.index - first, query),
    )
    batches = [
        rows
        for ids in _sequences(data, sequence_length)
        for rows in ids.split(captured.batch or max(1, TOGETHER // ids.shape[1]))
    ]
    if not batches:
        raise InputError("calibration data is empty: give at least one sequence of token ids.")
    starts = spread_starts([ids.shape for ids in batches], context_length or 0)
    with torch.no_grad(), Wait("reading texts for Q-Filters", shown=progress) as wait:
        for ids, start in wait.count(list(zip(batches, starts, strict=True))):
            positions = start[:, None] + torch.arange(ids.shape[1])
            reader(ids.to(captured.device), positions.to(captured.device))
    lengths = {"sequence_length": sequence_length, "context_length": context_length}
    filters = statistics.finish({**source, **lengths})
    return filters if captured.part is None else filters.of_whole(captured.part.joined, first)


def spread_starts(shapes: Sequence[torch.Size], context_length: int) -> list[torch.Tensor]:
    """The start position [B] of each row of each batch [B, S], spread over 0 to `context_length - S`."""
    rows, last, starts = sum(batch for batch, _ in shapes), 0, []
    for batch, length in shapes:
        room, row = max(0, context_length - length), torch.arange(last, last + batch)
        starts.append(row * room // max(1, rows - 1))
        last += batch
    return starts


def model_fingerprint(captured: Captured, attentions: Sequence[Attention]) -> str:
    """The fingerprint of the model's weights, buffers and heads, which identifies its filters.

    Of a model that is split over processes, that of the whole.
    """
    if captured.whole_fingerprint is not None:
        return captured.whole_fingerprint
    module = captured.module
    return fingerprint((*module.parameters(), *module.buffers()), attentions)


def _sequences(data: Iterable[Any], length: int) -> Iterator[torch.Tensor]:
    """Pieces of the data, each int64 [B, S] of at most `length` tokens."""
    for item in data:
        if isinstance(item, str):
            raise InputError("calibration data must be token ids, not text: give tokenizer(text).input_ids.")
        ids = torch.as_tensor(item)
        if ids.is_floating_point() or ids.dim() not in (1, 2):
            raise InputError(
                f"calibration data must be integer ids [S] or [B, S], not {ids.dtype} {tuple(ids.shape)}."
            )
        ids = ids.long().reshape(-1, ids.shape[-1])
        yield from (piece for piece in ids.split(length, dim=1) if piece.numel())
