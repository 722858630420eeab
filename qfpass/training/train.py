"""`qfpass.train`: learns filters with which a compressed model predicts what the full model predicts."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from random import Random
from typing import Any

import torch
from rich.progress import track
from torch import nn

from ..attention.find import Attention, find_attentions
from ..capture.export import capture
from ..capture.original import original_of
from ..errors import UnsupportedOpError
from ..filters.calibrate import model_fingerprint
from ..filters.trained_filters import TrainedFilters
from ..store.scores import SCORES
from .attend_with import AttendWith
from .lessons import Teacher, long_enough
from .scorer import Scorer, log_norms, pairs_of
from .soft_eviction import SoftEviction
from .suffixes import Lesson, SuffixAttention

TEMPERATURE = 0.3  # of the gates, in standard deviations of the score
LEARNING_RATE, WARM_UP = 5e-3, 10
RATE_FACTORS = {"forgetting": 3.0, "size": 5.0}  # learning rates of these parameters, relative to the others
FREE_SIZES = 0.5  # share of the steps after which the layers' sizes are rounded and no longer learned
MEAN_DECAY = 0.97  # decay of the parameters' running mean, which is the result
ANSWERS, CONTINUATION = 2.0, 3.0  # weights of the losses


@dataclass(frozen=True)
class TrainingPlan:
    """The settings of one training; see `train`."""

    ratio: float
    steps: int
    lessons: int
    lengths: tuple[int, ...]
    batch: int
    sinks: int
    seed: int


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
    keys that the filters score highest. Gradient descent on the Kullback-Leibler divergence between the two
    next-token distributions learns the filters, the forgetting and the layers' sizes. The model's weights
    don't change.

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
        progress: show progress bars.

    Raises:
        InputError: no text is long enough for one of `lengths`.
        UnsupportedOpError: an attention has capped or biased logits or a learned sink; no attention is
            without a window, or those that are have heads of different shapes.
    """
    plan = TrainingPlan(ratio, steps, lessons, tuple(lengths), batch, sinks=4, seed=seed)
    captured = capture(original_of(model))
    attentions = find_attentions(captured, None)
    scored = _scored(attentions)
    with _frozen(captured.module), torch.random.fork_rng():
        torch.manual_seed(seed)
        reader = AttendWith(captured, attentions)
        teacher = Teacher(reader, attentions, tokenizer, captured.device)
        course = _lessons(teacher, tokenizer, texts, plan, progress)
        scorer = Scorer(*_samples(course, scored)).to(captured.device)
        losses = _descend(scorer, reader, attentions, scored, course, plan, progress)
    source = {
        "fingerprint": model_fingerprint(captured, attentions),
        "data": description,
        "ratio": ratio,
        "steps": steps,
        "batch": batch,
        "lessons": f"{lessons} x {' or '.join(map(str, lengths))} tokens",
        "seed": seed,
        "losses": losses,
    }
    return scorer.filters(attentions, scored, source)


def _scored(attentions: Sequence[Attention]) -> list[int]:
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


def _lessons(
    teacher: Teacher, tokenizer: Any, texts: Iterable[str], plan: TrainingPlan, progress: bool
) -> list[Lesson]:
    random = Random(plan.seed)
    tokens = [tokenizer(text, add_special_tokens=False, verbose=False).input_ids for text in texts]
    fitting = {length: long_enough(tokens, length) for length in plan.lengths}
    each = islice(cycle(plan.lengths), plan.lessons)
    return [
        teacher.lesson(random.choice(fitting[length]), length, random)
        for length in track(each, "reading lessons", total=plan.lessons, disable=not progress, transient=True)
    ]


def _samples(
    course: Sequence[Lesson], scored: Sequence[int]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The inputs of `Scorer` for each scored layer: pairs [tokens, P] and norms [Hkv, tokens]."""
    few = course[:8]
    pairs = [torch.cat([pairs_of(x.keys[i], x.values[i]) for x in few]) for i in scored]
    norms = [torch.cat([log_norms(x.values[i]) for x in few], 1) for i in scored]
    return pairs, norms


def _descend(
    scorer: Scorer,
    reader: AttendWith,
    attentions: Sequence[Attention],
    scored: Sequence[int],
    course: Sequence[Lesson],
    plan: TrainingPlan,
    progress: bool,
) -> dict[str, list[float]]:
    """Train the scorer and set its parameters to their running mean; returns the mean losses over time."""
    random = Random(plan.seed + 1)
    optimizer = _optimizer(scorer)
    means = {name: value.detach().clone() for name, value in scorer.named_parameters()}
    losses: dict[str, list[float]] = {"answers": [], "continuation": []}
    for step in track(range(plan.steps), "training filters", disable=not progress, transient=True):
        if step == int(FREE_SIZES * plan.steps):
            _restore(scorer, means)
            scorer.round_shares()
            means["size"] = scorer.size.detach().clone()
        _set_rate(optimizer, step, plan.steps)
        optimizer.zero_grad()
        for lesson in random.choices(course, k=plan.batch):
            ratio = plan.ratio * random.choice((0.5, 1, 1, 1))
            answers, continuation = _losses(
                scorer, reader, attentions, scored, lesson, int(lesson.tokens / ratio), plan
            )
            ((ANSWERS * answers + CONTINUATION * continuation) / plan.batch).backward()
            losses["answers"].append(answers.item())
            losses["continuation"].append(continuation.item())
        nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
        optimizer.step()
        decay = min(MEAN_DECAY, (step + 1) / (step + 10))
        for name, value in scorer.named_parameters():
            means[name].lerp_(value.detach(), 1 - decay)
    _restore(scorer, means)
    return {name: _thinned(values) for name, values in losses.items()}


def _losses(
    scorer: Scorer,
    reader: AttendWith,
    attentions: Sequence[Attention],
    scored: Sequence[int],
    lesson: Lesson,
    slots: int,
    plan: TrainingPlan,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The divergences from the full model of answers and of the continuation, in nats per token."""
    recent = SCORES["trained"].recent(slots)
    gates = SoftEviction(scorer, lesson, scored, slots, recent, plan.sinks, TEMPERATURE)
    logits = reader.read(lesson.ids, lesson.positions, SuffixAttention(lesson, attentions, gates))
    counted = lesson.asked | lesson.follows
    said, expected = logits[counted].float().log_softmax(-1), lesson.expected.float()
    divergence = (expected.exp() * (expected - said)).sum(-1)
    asked = lesson.asked[counted]
    return divergence[asked].mean() if asked.any() else divergence.sum() * 0, divergence[~asked].mean()


def _optimizer(scorer: Scorer) -> torch.optim.Optimizer:
    groups = [
        {"params": [value], "factor": RATE_FACTORS.get(name, 1.0)}
        for name, value in scorer.named_parameters()
    ]
    return torch.optim.Adam(groups, LEARNING_RATE)


def _set_rate(optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
    """Set the learning rates of one step: a warm-up times a cosine that falls to a tenth."""
    rate = LEARNING_RATE * min(1.0, (step + 1) / WARM_UP)
    rate *= 0.1 + 0.9 * (1 + math.cos(math.pi * step / steps)) / 2
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


@torch.no_grad()
def _restore(scorer: Scorer, means: dict[str, torch.Tensor]) -> None:
    for name, value in scorer.named_parameters():
        value.copy_(means[name])


def _thinned(losses: list[float], points: int = 10) -> list[float]:
    """The means of about `points` equally long parts of the losses."""
    size = max(1, len(losses) // points)
    return [
        round(sum(losses[i : i + size]) / len(losses[i : i + size]), 4) for i in range(0, len(losses), size)
    ]


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
