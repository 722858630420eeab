"""Calibrate: Q-Filters from the queries that a captured decoder makes of a text."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from rich.progress import track
from torch import fx, nn

from ..errors import InputError
from ..graph.attention import Attention, find_attentions
from ..graph.capture import Captured, capture
from .artifact import QFilters
from .find import fingerprint
from .statistics import QueryStatistics

SEQUENCE_LENGTH = 2048  # tokens; the paper's


def calibrate(
    model: nn.Module,
    data: Iterable[Any],
    *,
    sequence_length: int = SEQUENCE_LENGTH,
    description: str = "",
    progress: bool = True,
) -> QFilters:
    """Q-Filters of `model` from a text (Godey et al. 2025, arXiv 2503.02812).

    The queries are taken where the attentions read them, after positions and norms. Memory is one
    sequence's activations and a [D, D] matrix a head, however long the data.

    Args:
        model: a decoder, as for `qfpass.compile`, or what it returned.
        data: an iterable of token ids: lists, or tensors [S] or [B, S]; the paper uses 20 sequences of
            2,048 tokens.
        sequence_length: longer sequences are cut at this many tokens.
        description: what the data is, kept with the filters.
        progress: show a progress bar.

    Raises:
        InputError: no data, or ids that aren't integers.
    """
    captured = capture(getattr(model, "qfpass_original", model))
    attentions = find_attentions(captured, None)
    return calibrate_captured(
        captured,
        attentions,
        data,
        sequence_length=sequence_length,
        source={"data": description, "fingerprint": model_fingerprint(captured, attentions)},
        progress=progress,
    )


def calibrate_captured(
    captured: Captured,
    attentions: Sequence[Attention],
    data: Iterable[Any],
    *,
    sequence_length: int,
    source: dict[str, Any],
    progress: bool,
) -> QFilters:
    """The same for a decoder that is captured already."""
    statistics = QueryStatistics(attentions)
    reader = _QueryReader(captured.module, attentions, statistics)
    sequences = list(_sequences(data, sequence_length))
    if not sequences:
        raise InputError("calibration data is empty: give at least one sequence of token ids.")
    for ids in track(sequences, "calibrating", disable=not progress, transient=True):
        positions = torch.arange(ids.shape[1], device=captured.device).expand(len(ids), -1)
        with torch.no_grad():
            reader.run(ids.to(captured.device), positions)
    return statistics.finish({**source, "sequence_length": sequence_length})


def model_fingerprint(captured: Captured, attentions: Sequence[Attention]) -> str:
    """The fingerprint that filters of this model are kept under: weights, buffers and heads."""
    module = captured.module
    return fingerprint((*module.parameters(), *module.buffers()), attentions)


class _QueryReader(fx.Interpreter):
    """Runs a captured graph and gives each attention's queries to the statistics as they are made."""

    def __init__(
        self,
        module: fx.GraphModule,
        attentions: Sequence[Attention],
        statistics: QueryStatistics,
    ) -> None:
        super().__init__(module)
        self._statistics = statistics
        self._attentions = {attention.node: attention for attention in attentions}

    def run_node(self, node: fx.Node) -> Any:
        attention = self._attentions.get(node)
        if attention is not None:
            query = self.env[attention.query]
            query = query.transpose(1, 2) if attention.heads_last else query
            self._statistics.update(attention.index, query)
        return super().run_node(node)


def _sequences(data: Iterable[Any], length: int) -> Iterator[torch.Tensor]:
    """The data as int64 [B, S] pieces of at most `length` tokens."""
    for item in data:
        ids = torch.as_tensor(item)
        if ids.is_floating_point() or ids.dim() not in (1, 2):
            raise InputError(
                f"calibration data must be integer ids [S] or [B, S], not {ids.dtype} {tuple(ids.shape)}."
            )
        ids = ids.long().reshape(-1, ids.shape[-1])
        yield from (piece for piece in ids.split(length, dim=1) if piece.numel())
