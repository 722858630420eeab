"""`qfpass.train`: learns filters with which a compressed model predicts what the full model predicts."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn

from ..attention.find import Attention, find_attentions
from ..capture.export import capture
from ..capture.original import original_of
from ..errors import InputError, UnsupportedOpError
from ..filters.calibrate import model_fingerprint
from ..filters.trained_filters import TrainedFilters
from ..graph.captured import Captured
from ..graph.devices import devices_of
from ..waits import Wait
from .attend_with import AttendWith
from .course import LessonsInFiles, lessons_in_memory
from .descent import Descent, TrainingPlan
from .lessons import Teacher, long_enough
from .scorer import Scorer, log_norms, pairs_of
from .suffixes import Lesson


def train(
    model: nn.Module,
    tokenizer: Any,
    texts: Iterable[str],
    *,
    ratio: float = 8,
    steps: int = 700,
    lessons: int = 80,
    lengths: Sequence[int] = (1024,),
    batch: int = 1,
    seed: int = 0,
    description: str = "unnamed texts",
    progress: bool = True,
) -> TrainedFilters:
    """Trained filters of a model, for `qfpass.compile(model, ratio=8, filters=...)`.

    The full model reads pieces of the texts with invented facts in them. It predicts how each piece goes on
    and answers questions about the facts. Then it predicts the same with a gate on every key, open for the
    keys that the filters score highest. Gradient descent lowers the Kullback-Leibler divergence between the
    two predictions. It learns the filters, how fast scores fall with age, and the layers' sizes. The model's
    weights don't change.

    Args:
        model: a Hugging Face decoder in eval mode, or any that `qfpass.compile` takes; bfloat16 is faster.
        tokenizer: turns texts into the model's ids, as a tokenizer of transformers does.
        texts: of the kind that will be read. For each of `lengths`, one must be more than a quarter and more
            than 256 tokens longer.
        ratio: how many times smaller than the context the store will be; other ratios work, less well.
        steps: steps of gradient descent.
        lessons: pieces of text, held in memory with their keys and values.
        lengths: tokens of the pieces, used in turn; the filters don't learn about longer distances.
        batch: lessons per step; several make better use of a GPU.
        seed: of the lessons and of the training.
        description: says what the texts are; saved with the filters.
        progress: say how far it is.

    Raises:
        InputError: texts is a string, or no text is long enough for one of `lengths`.
        UnsupportedOpError: an attention has capped or biased logits or a learned sink; no attention is
            without a window, or those that are have heads of different shapes.
    """
    if isinstance(texts, str):
        raise InputError("texts must be a list of texts, not one string: put it into a list, [text].")
    with Wait("tracing the model", shown=progress):
        captured = capture(original_of(model))
    refuse_without_predictions(captured)
    plan = TrainingPlan(ratio, steps, lessons, tuple(lengths), batch, sinks=4, seed=seed)
    attentions = find_attentions(captured, None)
    ids = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts]
    return train_captured(captured, attentions, tokenizer, ids, plan, description, progress)


def train_captured(
    captured: Captured,
    attentions: Sequence[Attention],
    tokenizer: Any,
    texts: Sequence[list[int]],
    plan: TrainingPlan,
    description: str,
    progress: bool,
    folder: Path | None = None,
) -> TrainedFilters:
    """Trained filters of a captured decoder; texts are token ids. See `train`.

    Lessons and the state of the training are kept in `folder`, from where an interrupted training goes on;
    None keeps them in memory.
    """
    scored = scored_attentions(attentions)
    with _frozen(captured.module), torch.random.fork_rng():
        torch.manual_seed(plan.seed)
        reader = AttendWith(captured, attentions)
        teacher = Teacher(reader, attentions, tokenizer, captured.device, plan.continuation, plan.suffix)
        course = _course(teacher, texts, plan, progress, folder)
        scorer = Scorer(*_samples(course, scored)).to(captured.device)
        losses = Descent(scorer, reader, attentions, scored, plan, folder and folder / "training.pt").run(
            course, progress
        )
    source = {
        "fingerprint": model_fingerprint(captured, attentions),
        "data": description,
        "ratio": plan.ratio,
        "steps": plan.steps,
        "batch": plan.batch,
        "lessons": f"{plan.lessons} x {' or '.join(map(str, plan.lengths))} tokens",
        "seed": plan.seed,
        "losses": losses,
    }
    return scorer.filters(attentions, scored, source)


def scored_attentions(attentions: Sequence[Attention]) -> list[int]:
    """The indices of the attentions whose filters are trained: those without a window.

    Raises:
        UnsupportedOpError: training can't compute an attention, there is none to train, or shapes differ.
    """
    for a in attentions:
        if not a.form.is_plain:
            raise UnsupportedOpError(
                f"{a.name}: filters can't be trained for attention with capped or biased logits or a sink; "
                "use qfpass.calibrate."
            )
    scored = [a.index for a in attentions if a.span.reach is None]
    widths = {(attentions[i].kv_heads, attentions[i].head_dim, attentions[i].value_dim) for i in scored}
    if len(widths) != 1:
        raise UnsupportedOpError(
            f"filters can't be trained for layers of {len(widths)} different shapes of heads: "
            "use qfpass.calibrate."
        )
    return scored


def _course(
    teacher: Teacher, texts: Sequence[list[int]], plan: TrainingPlan, progress: bool, folder: Path | None
) -> Sequence[Lesson]:
    """The lessons, in files of the folder if there is one, each with random numbers of its own."""
    fitting = {length: long_enough(texts, length, plan.continuation) for length in plan.lengths}

    def make(number: int) -> Lesson:
        length, random = plan.lengths[number % len(plan.lengths)], Random(f"lesson {plan.seed} {number}")
        return teacher.lesson(random.choice(fitting[length]), length, random)

    if folder is None:
        return lessons_in_memory(make, plan.lessons, progress)
    return LessonsInFiles(folder, make, plan.lessons, progress)


def _samples(
    course: Sequence[Lesson], scored: Sequence[int]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The inputs of `Scorer` for each scored layer: pairs [tokens, P] and norms [Hkv, tokens]."""
    few = course[:2]  # thousands of tokens
    pairs = [torch.cat([pairs_of(x.keys[i], x.values[i]) for x in few]) for i in scored]
    norms = [torch.cat([log_norms(x.values[i]) for x in few], 1) for i in scored]
    return pairs, norms


def refuse_without_predictions(captured: Captured) -> None:
    """Raise UnsupportedOpError for a model without a head over its vocabulary, or a part of a model."""
    if captured.part is not None:
        raise UnsupportedOpError(
            "filters are trained in one process, with the whole model: load it without tp_plan or pp_size. "
            "Processes of a split model then find them, or take them by filters=."
        )
    if len(devices_of(captured.module)) > 1:
        raise UnsupportedOpError(
            "filters are trained on one device: load the model there. On several devices it then finds them, "
            "or takes them by filters=."
        )
    if not captured.predicts:
        raise UnsupportedOpError(
            "filters are trained to keep a model's predictions, and this one predicts no tokens: train them "
            "with its language model, on the same layers, and give them by filters=."
        )


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """Inside, the model's parameters require no gradients; afterwards they do again if they did before."""
    wanted = [p for p in module.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
