"""Long greedy generation: how much of a model's text agrees with the uncompressed model's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ...errors import InputError
from .footprint import Footprint
from .progress import told
from .spread import mean_and_error
from .streamed_perplexity import as_rows
from .text_reader import PIECE, Model, open_reader


@dataclass(frozen=True)
class Continuation:
    """The text that a model generated after one prompt, compared with the uncompressed model's.

    Attributes:
        common_prefix: number of leading tokens that are equal.
        equal: share of positions with equal tokens, 0 to 1.
        perplexity: of the generated text under the uncompressed model.
        ids: the generated token ids.
    """

    common_prefix: int
    equal: float
    perplexity: float
    ids: tuple[int, ...]


@dataclass(frozen=True)
class GenerationResult:
    """All continuations, and the footprint of one text at its end."""

    continuations: tuple[Continuation, ...]
    footprint: Footprint

    @property
    def common_prefix(self) -> tuple[float, float | None]:
        """Mean number of leading equal tokens, and its standard error."""
        return mean_and_error([c.common_prefix for c in self.continuations])

    @property
    def equal(self) -> tuple[float, float | None]:
        """Mean share of equal tokens, and its standard error."""
        return mean_and_error([c.equal for c in self.continuations])

    @property
    def perplexity(self) -> tuple[float, float | None]:
        """The perplexity of all texts (equally long) under the uncompressed model, and its standard error."""
        mean, error = mean_and_error([math.log(c.perplexity) for c in self.continuations])
        return math.exp(mean), None if error is None else math.exp(mean) * error

    @property
    def samples(self) -> int:
        """The number of prompts."""
        return len(self.continuations)

    def measures(self) -> dict[str, tuple[float, float | None]]:
        """See `qfpass.tools.evaluate.report.Result`."""
        return {
            "equal tokens": self.equal,
            "common prefix": self.common_prefix,
            "perplexity": self.perplexity,
        }


def generation(
    model: Model,
    original: Model,
    prompts: torch.Tensor | Sequence[Sequence[int]],
    *,
    new_tokens: int = 256,
    expected: torch.Tensor | None = None,
    batch: int = 8,
    progress: bool = False,
) -> GenerationResult:
    """Write `new_tokens` greedy tokens after each prompt and compare them with the uncompressed model's.

    Args:
        model: see `qfpass.tools.evaluate.open_reader`.
        original: the uncompressed model, of one of the same kinds.
        prompts: token ids [N, S], prompts of one length.
        new_tokens: tokens written; an end of text doesn't end them, so that all have equal length.
        expected: the uncompressed model's tokens [N, new_tokens], if `greedy` has written them already.
        batch: prompts that run together.

    Raises:
        InputError: prompts of unequal length, or `expected` of another shape.
    """
    ids = as_rows(prompts)
    if expected is None:
        expected, _ = greedy(original, ids, new_tokens, batch=batch, progress=progress)
    if expected.shape != (len(ids), new_tokens):
        raise InputError(f"expected must be [{len(ids)}, {new_tokens}], not {list(expected.shape)}.")
    written, footprint = greedy(model, ids, new_tokens, batch=batch, progress=progress)
    nll = torch.cat(
        [_nll(original, *rows) for rows in zip(ids.split(batch), written.split(batch), strict=True)]
    )
    same = written == expected
    continuations = tuple(
        Continuation(int(row.cumprod(0).sum()), float(row.double().mean()), math.exp(mean), tuple(text))
        for row, mean, text in zip(same, (nll / new_tokens).tolist(), written.tolist(), strict=True)
    )
    return GenerationResult(continuations, footprint)


def greedy(
    model: Model, prompts: torch.Tensor, new_tokens: int, *, batch: int = 8, progress: bool = False
) -> tuple[torch.Tensor, Footprint]:
    """The tokens [N, new_tokens] that `model` writes after prompts [N, S], and the footprint at the end."""
    if new_tokens < 1:
        raise InputError(f"new_tokens must be at least 1, not {new_tokens}.")
    parts, footprint = [], Footprint(None, 0)
    with told("writing", len(prompts) * new_tokens, progress) as wait:
        for rows in prompts.split(batch):
            reader = open_reader(model, prompts.shape[1])
            if rows.shape[1] > 1:
                reader.prefill(rows[:, :-1])
            text = [rows[:, -1:]]
            for _ in range(new_tokens):
                text.append(reader.read(text[-1], keep=1).argmax(-1).cpu())
                wait.advance(len(rows))
            parts.append(torch.cat(text[1:], dim=1))
            footprint = reader.footprint
    return torch.cat(parts), footprint


def _nll(original: Model, prompt: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood of text [B, T] after prompt [B, S], summed: [B] float64."""
    whole = torch.cat([prompt, text], dim=1)
    reader = open_reader(original, whole.shape[1])
    start = prompt.shape[1] - 1
    if start:
        reader.prefill(whole[:, :start])
    total = torch.zeros(len(whole), dtype=torch.float64)
    for piece, target in zip(whole[:, start:-1].split(PIECE, 1), text.split(PIECE, 1), strict=True):
        logits = reader.read(piece).float().cpu()
        nll = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none")
        total += nll.view(target.shape).double().sum(-1)
    return total
