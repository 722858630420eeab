"""Perplexity of streamed text: every token predicted from the store as it stands."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ...errors import InputError
from ...waits import Wait
from .footprint import Footprint
from .progress import told
from .spread import mean_and_error
from .text_reader import PIECE, Model, TextReader, open_reader


@dataclass(frozen=True)
class Perplexity:
    """Perplexity over some texts.

    Attributes:
        nll: sum of the negative log-likelihoods of all counted tokens, in nats.
        tokens: tokens counted, all texts.
        per_text: perplexity of each text.
        first: tokens of each text that were read before counting began.
        footprint: slots and bytes held of one text at its end.
    """

    nll: float
    tokens: int
    per_text: tuple[float, ...]
    first: int
    footprint: Footprint

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-likelihood."""
        return math.exp(self.nll / self.tokens)

    @property
    def standard_error(self) -> float | None:
        """The standard error of `perplexity` over texts: that of the mean log times it; None for one text."""
        error = mean_and_error([math.log(p) for p in self.per_text])[1]
        return None if error is None else self.perplexity * error

    @property
    def samples(self) -> int:
        """The number of texts."""
        return len(self.per_text)

    def measures(self) -> dict[str, tuple[float, float | None]]:
        """See `qfpass.tools.evaluate.report.Result`."""
        return {"perplexity": (self.perplexity, self.standard_error)}


def perplexity(
    model: Model,
    texts: torch.Tensor | Sequence[Sequence[int]],
    *,
    first: int | None = None,
    batch: int = 8,
    progress: bool = False,
) -> Perplexity:
    """The perplexity of `texts`, streamed.

    The first tokens, at most as many as there are slots, are read at once; after them a model with
    bounded stores reads token by token, so each prediction comes from the store as it then stands. A
    model that keeps every key may read many at a time, which predicts the same.

    Args:
        model: see `qfpass.tools.evaluate.open_reader`.
        texts: token ids [N, S], texts of one length.
        first: leading tokens whose predictions aren't counted; by default as many as there are slots,
            or none. Pass the same number for every model that you compare.
        batch: texts read together, as rows of one batch.
        progress: show a progress bar.

    Raises:
        InputError: texts of unequal length, or too short to count anything; a baseline that evicts once.
    """
    ids = as_rows(texts)
    length = ids.shape[1]
    one = open_reader(model, length)
    if not one.streams:
        raise InputError(
            "perplexity needs a store that evicts while it reads. A baseline that compresses one context at "
            "once only works with needle, ruler and generation."
        )
    if first is None:
        first = min(one.slots or 0, length)
    if not 0 <= first <= length - 2:
        raise InputError(
            f"perplexity: texts of {length} tokens leave nothing to count after the first {first}: give "
            "longer texts, or a smaller first=."
        )
    sums, footprint = [], Footprint(None, 0)
    with told("perplexity", len(ids) * length, progress) as wait:
        for rows in ids.split(batch):
            reader = open_reader(model, length)
            sums.append(_stream(reader, rows, first, wait))
            footprint = reader.footprint
    each = torch.cat(sums) / (length - 1 - first)
    return Perplexity(
        float(torch.cat(sums).sum()),
        len(ids) * (length - 1 - first),
        tuple(each.exp().tolist()),
        first,
        footprint,
    )


def as_rows(texts: torch.Tensor | Sequence[Sequence[int]]) -> torch.Tensor:
    """Token ids as int64 [N, S]."""
    if not isinstance(texts, torch.Tensor):
        lengths = sorted({len(text) for text in texts})
        if len(lengths) != 1:
            raise InputError(f"texts must have one length to be rows of a batch, not {lengths}.")
        texts = torch.tensor([list(text) for text in texts])
    if texts.dim() != 2 or texts.is_floating_point() or 0 in texts.shape:
        raise InputError(f"texts must be token ids [N, S], not {texts.dtype} {tuple(texts.shape)}.")
    return texts.long()


def _stream(reader: TextReader, ids: torch.Tensor, first: int, wait: Wait) -> torch.Tensor:
    """Negative log-likelihood of the counted tokens of each row, [B] float64."""
    total = torch.zeros(len(ids), dtype=torch.float64)
    for start, end in _cuts(ids.shape[1] - 1, first, reader.slots):
        if start < first:
            reader.prefill(ids[:, start:end])
        else:
            total += _nll(reader.read(ids[:, start:end]), ids[:, start + 1 : end + 1])
        wait.advance(len(ids) * (end - start))
    return total


def _cuts(length: int, first: int, slots: int | None) -> list[tuple[int, int]]:
    """Pieces of `length` tokens: no piece crosses `first`; past the slots, one token each."""
    at_once = first if slots is None else min(first, slots)
    step = PIECE if slots is None else 1
    starts = [*range(0, at_once, PIECE), *range(at_once, first, step), *range(first, length, step)]
    return list(zip(starts, [*starts[1:], length], strict=True))


def _nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """logits [B, S, V], targets [B, S] -> summed over S, [B] float64 on the CPU."""
    flat = F.cross_entropy(
        logits.float().flatten(0, 1), targets.to(logits.device).flatten(), reduction="none"
    )
    return flat.view(targets.shape).double().sum(-1).cpu()
