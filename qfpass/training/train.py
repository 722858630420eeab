"""qfpass.train: filters that make a compressed model say what the full one does."""

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

from ..errors import UnsupportedOpError
from ..filters.calibrate import model_fingerprint
from ..filters.trained import TrainedFilters
from ..graph.attention import Attention, find_attentions
from ..graph.capture import capture
from ..graph.original import original_of
from ..store.scores import SCORES
from .eviction import SoftEviction
from .lessons import Teacher, long_enough
from .reader import Reader
from .scorer import Scorer, log_norms, pairs_of
from .suffixes import Lesson, SuffixAttention

TEMPERATURE = 0.3  # of the gates, in standard deviations of the score
LEARNING_RATE, WARM_UP = 5e-3, 10
FASTER = {"forgetting": 3.0, "size": 5.0}  # learning rates, over the others'
FREE_SIZES = 0.5  # of the steps; then the layers' sizes are rounded and the rest goes on learning
AVERAGE = 0.97  # decay of the running mean of the parameters, which is what is kept
ANSWERS, CONTINUATION = 2.0, 3.0  # weights of the losses


@dataclass(frozen=True)
class Plan:
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

    The model reads pieces of the texts, with invented facts in them, and says how they go on and what the
    facts are. Then it does so again with a gate on every key, open for the keys that its filter ranks
    highest; filters, forgetting and the sizes of the layers are moved by gradients so that it says the same
    (the Kullback-Leibler divergence of its next tokens). The model's weights stay as they are.

    Args:
        model: a Hugging Face decoder in eval mode, or any that `qfpass.compile` takes; bfloat16 is faster.
        tokenizer: turns texts into the model's ids, as transformers' do.
        texts: of the kind that will be read, some longer than the longest lesson by a quarter and 256 tokens.
        ratio: how many times smaller the store will be than the context; others work, less well.
        steps: of gradient descent.
        lessons: pieces of text, held in memory with their keys and values.
        lengths: tokens of the pieces, in turn: filters know no distance that is longer.
        batch: lessons a step; a GPU has time for several.
        description: what the texts are, kept with the filters.

    Raises:
        InputError: no text is long enough for a length.
        UnsupportedOpError: attention whose logits are capped, biased or beside a sink.
    """
    plan = Plan(ratio, steps, lessons, tuple(lengths), batch, sinks=4, seed=seed)
    captured = capture(original_of(model))
    attentions = find_attentions(captured, None)
    scored = _scored(attentions)
    with _frozen(captured.module), torch.random.fork_rng():
        torch.manual_seed(seed)
        reader = Reader(captured, attentions)
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
    """The attentions that a bounded store serves: those without a window.

    Raises:
        UnsupportedOpError: an attention that training doesn't compute, or none to train.
    """
    for a in attentions:
        if a.softcap is not None or a.slopes is not None or a.sink is not None:
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
    teacher: Teacher, tokenizer: Any, texts: Iterable[str], plan: Plan, progress: bool
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
    """Keys and values of a few lessons, for the inputs' means and deviations."""
    few = course[:8]
    pairs = [torch.cat([pairs_of(x.keys[i], x.values[i]) for x in few]) for i in scored]
    norms = [torch.cat([log_norms(x.values[i]) for x in few], 1) for i in scored]
    return pairs, norms


def _descend(
    scorer: Scorer,
    reader: Reader,
    attentions: Sequence[Attention],
    scored: Sequence[int],
    course: Sequence[Lesson],
    plan: Plan,
    progress: bool,
) -> dict[str, list[float]]:
    """Move the scorer's parameters and leave the running mean of them in their place; the mean losses."""
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
        decay = min(AVERAGE, (step + 1) / (step + 10))
        for name, value in scorer.named_parameters():
            means[name].lerp_(value.detach(), 1 - decay)
    _restore(scorer, means)
    return {name: _thinned(values) for name, values in losses.items()}


def _losses(
    scorer: Scorer,
    reader: Reader,
    attentions: Sequence[Attention],
    scored: Sequence[int],
    lesson: Lesson,
    slots: int,
    plan: Plan,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Divergence from the full model, of answers and of the continuation, in nats a token."""
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
        {"params": [value], "factor": FASTER.get(name, 1.0)} for name, value in scorer.named_parameters()
    ]
    return torch.optim.Adam(groups, LEARNING_RATE)


def _set_rate(optimizer: torch.optim.Optimizer, step: int, steps: int) -> None:
    """A warm-up, then a cosine down to a tenth."""
    rate = LEARNING_RATE * min(1.0, (step + 1) / WARM_UP)
    rate *= 0.1 + 0.9 * (1 + math.cos(math.pi * step / steps)) / 2
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


@torch.no_grad()
def _restore(scorer: Scorer, means: dict[str, torch.Tensor]) -> None:
    for name, value in scorer.named_parameters():
        value.copy_(means[name])


def _thinned(losses: list[float], points: int = 10) -> list[float]:
    """Means of `points` equal parts."""
    size = max(1, len(losses) // points)
    return [
        round(sum(losses[i : i + size]) / len(losses[i : i + size]), 4) for i in range(0, len(losses), size)
    ]


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    """No gradients for the model's parameters, which are as they were afterwards."""
    wanted = [p for p in module.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
