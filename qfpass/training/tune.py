"""`qfpass.tune`: trains filters on texts that the model writes itself, and keeps them where compile looks."""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from rich.console import Console
from torch import nn

from ..attention.find import Attention, find_attentions
from ..capture.decoder_call import own_context_length
from ..capture.export import capture
from ..capture.original import original_of
from ..errors import ConfigError, FilterFileError
from ..filters import TrainedFilters
from ..filters.calibrate import model_fingerprint
from ..filters.local_cache import cache_folder, store_cached
from ..filters.self_written import write_text
from ..graph.captured import Captured
from ..rewriting.uncompressed import Uncompressed
from ..waits import Wait
from .descent import TrainingPlan
from .self_texts import MOST_LIKELY, long_texts, openings
from .train import refuse_without_predictions, scored_attentions, train_captured

ROWS, TOKENS = 10, 1024  # of the texts that the model writes
LENGTHS = (1024, 2048)  # tokens of lessons, in turn
CONTINUATION, SUFFIX = 128, 256  # tokens that a step reads after a context: on which the text goes on; all
RATIOS = (1, 1, 3)  # times `ratio`, of which each reading of a lesson takes one
BACKWARD = 8.0  # times a reading without gradients and context: what a step of the training takes


def tune(
    model: nn.Module,
    tokenizer: Any,
    *,
    ratio: float = 4,
    steps: int = 240,
    lessons: int = 24,
    seed: int = 0,
    progress: bool = True,
) -> TrainedFilters:
    """Trained filters of a model, without data; `qfpass.compile(model, ratio=8)` then finds them by itself.

    The model writes texts of several kinds: prose, lists, code, tables and dialogue. Invented facts are put
    in, and the filters learn which keys the model needs to go on and to answer, as in `qfpass.train`. How
    long that will take is said before it begins. If it is interrupted, the next call continues it.

    Args:
        model: a decoder in eval mode, as `train` takes it.
        tokenizer: turns texts into the model's ids.
        ratio: tokens for each slot while the filters learn; three times as many in a third of the readings.
            With few bits, `compile(ratio=8)` leaves a slot for about 3.5 tokens.
        steps: steps of gradient descent.
        lessons: pieces of text, which lie in the cache folder with their keys and values meanwhile.
        seed: of texts, lessons and training.
        progress: say what is being done, and how far it is.

    Returns:
        The filters, which are kept in the cache folder too.

    Raises:
        ConfigError: a setting can't work, or the model's context is too short.
        UnsupportedOpError: filters can't be trained for this model; see `train`.
        FilterFileError: the cache folder can't be written.
    """
    if not (ratio > 1 and steps >= 1 and lessons >= 1):
        raise ConfigError(
            f"tune needs a ratio above 1 and at least one step and one lesson, not ratio={ratio!r}, "
            f"steps={steps!r} and lessons={lessons!r}."
        )
    original = original_of(model)
    with Wait("tracing the model", shown=progress):
        captured = capture(original)
    refuse_without_predictions(captured)
    attentions = find_attentions(captured, None)
    scored_attentions(attentions)  # refuses before anything is written
    plan = TrainingPlan(
        ratio, steps, lessons, _lengths(own_context_length(original)), batch=1, sinks=4, seed=seed,
        continuation=CONTINUATION, suffix=SUFFIX, ratios=RATIOS,
    )  # fmt: skip
    work = _Work(model_fingerprint(captured, attentions), plan)
    say = Console(file=sys.stderr, quiet=not progress).print
    say(
        f"qfpass.tune: about {_minutes(captured, attentions, plan):.0f} minutes on this machine. If it is "
        f"interrupted, run it again to continue: until the end, its work is kept in {work.folder}."
    )
    written = work.texts()
    if written is None:
        first = torch.tensor(openings(tokenizer, ROWS, Random(seed)), device=captured.device)
        written = write_text(
            captured, attentions, first, TOKENS, most_likely=MOST_LIKELY, seed=seed, progress=progress
        ).tolist()
        work.keep(written)
    texts = long_texts(written, 2 * max(plan.lengths) + CONTINUATION, 4, Random(seed))
    described = f"{ROWS} x {TOKENS} tokens that the model wrote itself"
    filters = train_captured(captured, attentions, tokenizer, texts, plan, described, progress, work.folder)
    folder = store_cached(filters)
    work.clear()
    say(f"qfpass.tune: filters of {len(filters.filters)} layers, in {folder}; qfpass.compile finds them.")
    return filters


@dataclass(frozen=True)
class _Work:
    """What a tuning has done so far, in a folder of the cache that is named after the model and the plan."""

    fingerprint: str
    plan: TrainingPlan

    @property
    def folder(self) -> Path:
        plan = hashlib.sha256(repr(self.plan).encode()).hexdigest()[:8]
        return cache_folder() / "tuning" / f"{self.fingerprint}-{plan}"

    def texts(self) -> list[list[int]] | None:
        """The texts that were written, None if there are none or they can't be read."""
        try:
            texts: list[list[int]] = json.loads((self.folder / "texts.json").read_text())
        except (OSError, ValueError):
            return None
        return texts

    def keep(self, texts: Sequence[list[int]]) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "texts.json").write_text(json.dumps(texts))
        except OSError as error:
            raise FilterFileError(
                f"The cache can't be written ({error}): set QFPASS_CACHE to one that can be written."
            ) from error

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _lengths(context_length: int | None) -> tuple[int, ...]:
    """The lengths of lessons that the model's context has room for.

    Raises:
        ConfigError: there is none.
    """
    room = (context_length or 2 * max(LENGTHS)) - SUFFIX
    if lengths := tuple(length for length in LENGTHS if length <= room):
        return lengths
    raise ConfigError(
        f"tune needs a context of at least {min(LENGTHS) + SUFFIX} tokens, and this model's has "
        f"{context_length}: use qfpass.train with lengths= of your choice."
    )


def _minutes(captured: Captured, attentions: Sequence[Attention], plan: TrainingPlan) -> float:
    """About how many minutes a tuning takes, from the time of one reading of each kind."""
    writer, seconds = Uncompressed(captured, attentions, capacity=TOKENS, batch=ROWS), list[float]()
    for tokens in (1, 1, SUFFIX // ROWS):
        ids = torch.zeros(ROWS, tokens, dtype=torch.long, device=captured.device)
        start = time.perf_counter()
        writer.read(ids).sum().item()
        seconds.append(time.perf_counter() - start)
    writing = TOKENS * seconds[1]
    reading = sum(plan.lengths) / len(plan.lengths) / SUFFIX * seconds[2] * plan.lessons
    return (writing + reading + plan.steps * seconds[2] * BACKWARD) / 60
