"""Gradient descent on the scorer's parameters, over the lessons of a course; it can stop and go on."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import nn

from ..attention.find import Attention
from ..store.scores import SCORES
from ..waits import Wait
from .attend_with import AttendWith
from .scorer import Scorer
from .soft_eviction import SoftEviction
from .suffixes import Lesson, SuffixAttention

TEMPERATURE = 0.3  # of the gates, in standard deviations of the score
LEARNING_RATE, WARM_UP = 5e-3, 10
RATE_FACTORS = {"forgetting": 3.0, "size": 5.0}  # learning rates of these parameters, relative to the others
FREE_SIZES = 0.5  # share of the steps after which the layers' sizes are rounded and no longer learned
MEAN_DECAY = 0.97  # decay of the parameters' running mean, which is the result
ANSWERS, CONTINUATION = 2.0, 3.0  # weights of the losses
SAVED_EVERY = 10  # steps


@dataclass(frozen=True)
class TrainingPlan:
    """The settings of one training; see `train`, and `Teacher` for continuation and suffix."""

    ratio: float
    steps: int
    lessons: int
    lengths: tuple[int, ...]
    batch: int
    sinks: int
    seed: int
    continuation: int = 256  # so many that some of their own keys are evicted too
    suffix: int = 448
    ratios: tuple[float, ...] = (0.5, 1, 1, 1)  # times `ratio`, of which each lesson takes one


class Descent:
    """The training of a scorer's parameters, whose running mean is the result.

    `saved` is a file that the state is written to every few steps and that an interrupted training goes on
    from; it must be of the same course and plan. It is deleted at the end.
    """

    def __init__(
        self,
        scorer: Scorer,
        reader: AttendWith,
        attentions: Sequence[Attention],
        scored: Sequence[int],
        plan: TrainingPlan,
        saved: Path | None = None,
    ) -> None:
        self.scorer, self.plan, self.losses = (
            scorer,
            plan,
            dict[str, list[float]](answers=[], continuation=[]),
        )
        self._reader, self._attentions, self._scored, self._saved = reader, attentions, scored, saved
        self._random = Random(plan.seed + 1)
        self._optimizer = _optimizer(scorer)
        self._means = {name: value.detach().clone() for name, value in scorer.named_parameters()}
        self._step = 0

    def run(self, course: Sequence[Lesson], progress: bool) -> dict[str, list[float]]:
        """Train on the lessons, set the parameters to their running mean; returns mean losses over time."""
        if self._saved is not None and self._saved.is_file():
            self._restore_state(torch.load(self._saved, weights_only=True))
        remaining = range(self._step, self.plan.steps)
        with Wait("training filters", shown=progress).expect(self.plan.steps) as wait:
            wait.advance(self._step)
            for _ in remaining:
                self._take_step(course)
                wait.advance()
                if self._saved is not None and self._step % SAVED_EVERY == 0:
                    self._save_state(self._saved)
        _set_to(self.scorer, self._means)
        if self._saved is not None:
            self._saved.unlink(missing_ok=True)
        return {name: _thinned(values) for name, values in self.losses.items()}

    def _take_step(self, course: Sequence[Lesson]) -> None:
        plan = self.plan
        if self._step == int(FREE_SIZES * plan.steps):
            _set_to(self.scorer, self._means)
            self.scorer.round_shares()
            self._means["size"] = self.scorer.size.detach().clone()
        _set_rate(self._optimizer, self._step, plan.steps)
        self._optimizer.zero_grad()
        for lesson in self._random.choices(course, k=plan.batch):
            ratio = plan.ratio * self._random.choice(plan.ratios)
            answers, continuation = self._losses_of(lesson, int(lesson.tokens / ratio))
            ((ANSWERS * answers + CONTINUATION * continuation) / plan.batch).backward()
            self.losses["answers"].append(answers.item())
            self.losses["continuation"].append(continuation.item())
        nn.utils.clip_grad_norm_(self.scorer.parameters(), 1.0)
        self._optimizer.step()
        decay = min(MEAN_DECAY, (self._step + 1) / (self._step + 10))
        for name, value in self.scorer.named_parameters():
            self._means[name].lerp_(value.detach(), 1 - decay)
        self._step += 1

    def _losses_of(self, lesson: Lesson, slots: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The divergences from the full model of answers and of the continuation, in nats per token."""
        recent = SCORES["trained"].recent(slots)
        gates = SoftEviction(self.scorer, lesson, self._scored, slots, recent, self.plan.sinks, TEMPERATURE)
        attend = SuffixAttention(lesson, self._attentions, gates)
        logits = self._reader.read(lesson.ids, lesson.positions, attend)
        counted = lesson.asked | lesson.follows
        said, expected = logits[counted].float().log_softmax(-1), lesson.expected.float()
        divergence = (expected.exp() * (expected - said)).sum(-1)
        asked = lesson.asked[counted]
        return divergence[asked].mean() if asked.any() else divergence.sum() * 0, divergence[~asked].mean()

    def _save_state(self, file: Path) -> None:
        version, numbers, gauss = self._random.getstate()
        state = {
            "plan": repr(asdict(self.plan)), "step": self._step, "losses": self.losses,
            "scorer": self.scorer.state_dict(), "means": self._means,
            "optimizer": self._optimizer.state_dict(), "sizes_learned": self.scorer.size.requires_grad,
            "random": [version, list(numbers), gauss], "torch_random": torch.get_rng_state(),
        }  # fmt: skip
        draft = file.with_suffix(".draft")
        torch.save(state, draft)
        draft.replace(file)

    def _restore_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; one of another plan is left alone."""
        if state["plan"] != repr(asdict(self.plan)):
            return
        self._step, self.losses, self._means = state["step"], state["losses"], state["means"]
        self.scorer.load_state_dict(state["scorer"])
        self.scorer.size.requires_grad_(state["sizes_learned"])
        self._optimizer.load_state_dict(state["optimizer"])
        version, numbers, gauss = state["random"]
        self._random.setstate((version, tuple(numbers), gauss))
        torch.set_rng_state(state["torch_random"])


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
def _set_to(scorer: Scorer, means: dict[str, torch.Tensor]) -> None:
    for name, value in scorer.named_parameters():
        value.copy_(means[name])


def _thinned(losses: list[float], points: int = 10) -> list[float]:
    """The means of about `points` equally long parts of the losses."""
    size = max(1, len(losses) // points)
    return [
        round(sum(losses[i : i + size]) / len(losses[i : i + size]), 4) for i in range(0, len(losses), size)
    ]
