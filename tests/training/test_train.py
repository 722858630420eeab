"""qfpass.train on tiny models: gates are the store's own choice, and training lowers its loss."""

import functools
from random import Random
from typing import Any

import pytest
import torch
from characters import CharacterTokenizer
from tiny import FAMILIES, FORMS
from torch import nn

import qfpass
from qfpass.attention.find import find_attentions
from qfpass.capture.export import capture
from qfpass.errors import InputError, UnsupportedOpError
from qfpass.store.scores import trained
from qfpass.training import descent, lessons, soft_eviction, train
from qfpass.training.attend_with import AttendWith
from qfpass.training.lessons import Teacher
from qfpass.training.scorer import SIZES, Scorer, log_norms, pairs_of
from qfpass.training.soft_eviction import SoftEviction
from qfpass.training.suffixes import SuffixAttention

LENGTH, SLOTS, RECENT, SINKS = 160, 30, 3, 2
TEXTS = ["".join(Random(seed).choice("abcdefgh ") for _ in range(400)) for seed in range(3)]


@pytest.fixture(autouse=True)
def _one_fact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons, "FACTS", 1)
    short = functools.partial(descent.TrainingPlan, continuation=20)
    monkeypatch.setattr(train, "TrainingPlan", short)


def model_of(family: str = "llama", **sizes: Any) -> nn.Module:
    return (FAMILIES | FORMS)[family](vocab=CharacterTokenizer.vocabulary, **sizes)


def lesson_of(model: nn.Module) -> tuple[Any, ...]:
    captured = capture(model)
    attentions = find_attentions(captured, None)
    reader = AttendWith(captured, attentions)
    teacher = Teacher(reader, attentions, CharacterTokenizer(), captured.device, continuation=20, suffix=448)
    ids = CharacterTokenizer()(TEXTS[0]).input_ids
    return reader, attentions, teacher.lesson(ids, LENGTH, Random(0))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@torch.no_grad()
def test_a_lesson_is_what_the_model_says(family: str) -> None:
    """The continuation's expected log-probabilities are those of the whole text, read at once."""
    model = model_of(family, **({"window": 7} if family == "gemma3" else {}))
    _, _, lesson = lesson_of(model)
    assert lesson.tokens == LENGTH and bool(lesson.asked.any()) and int(lesson.follows.sum()) == 20
    ids = torch.cat([lesson.context, lesson.ids[lesson.follows]])[None]
    said = model(ids).logits[0, LENGTH:].log_softmax(-1)
    torch.testing.assert_close(lesson.expected[:20].float(), said, rtol=2e-3, atol=2e-3)


@torch.no_grad()
def test_shut_gates_are_the_keys_that_the_store_would_evict(monkeypatch: pytest.MonkeyPatch) -> None:
    """At no temperature and without noise, for the filters that the scorer becomes."""
    monkeypatch.setattr(soft_eviction, "logistic_noise", torch.zeros_like)
    _, attentions, lesson = lesson_of(model_of())
    scored = [0, 1]
    scorer = Scorer(
        [pairs_of(lesson.keys[i], lesson.values[i]) for i in scored],
        [log_norms(lesson.values[i]) for i in scored],
    )
    torch.manual_seed(0)
    nn.init.normal_(scorer.weight, std=0.3)
    nn.init.normal_(scorer.size, std=0.5)
    gates = SoftEviction(scorer, lesson, scored, SLOTS, RECENT, SINKS, temperature=1e-4)
    filters = scorer.filters(attentions, scored, {}).for_slots(SLOTS)
    place = torch.arange(LENGTH)
    for index in scored:
        distance = (LENGTH - 1 - place)[None]  # from the context's last token
        is_open = gates.of_context(index, distance)[:, 0] > -1
        score = trained(lesson.keys[index], lesson.values[index], place[None], filters[index])[0]
        kept = SINKS + RECENT + int(float(scorer.shares[index]) * (SLOTS - SINKS - RECENT))
        protected = (place < SINKS) | (place >= LENGTH - RECENT)
        best = score.masked_fill(protected, float("inf")).topk(kept, dim=-1).indices
        expected = torch.zeros_like(is_open).scatter(-1, best, True)
        # The count of a layer is no whole number, so that one key may be half open.
        assert (is_open != expected).sum(-1).max() <= 1


@torch.no_grad()
def test_with_room_for_everything_nothing_changes() -> None:
    reader, attentions, lesson = lesson_of(model_of())
    logits = reader.read(lesson.ids, lesson.positions, SuffixAttention(lesson, attentions))
    said = logits[lesson.asked | lesson.follows].log_softmax(-1)
    torch.testing.assert_close(said, lesson.expected.float(), rtol=2e-3, atol=2e-3)


def test_training_lowers_the_divergence_and_leaves_the_model_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft_eviction, "logistic_noise", torch.zeros_like)  # so that losses can be compared
    model = model_of()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    filters = qfpass.train(
        model, CharacterTokenizer(), TEXTS, ratio=8, steps=60, lessons=1, lengths=[LENGTH], progress=False
    )
    losses = filters.source["losses"]
    assert sum(losses["continuation"][-3:]) < sum(losses["continuation"][:3])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    least = min(filters.shares)
    assert all(min(abs(s / least - a / b) for a in SIZES for b in SIZES) < 1e-3 for s in filters.shares)
    compiled = qfpass.compile(model, budget=24, context_length=LENGTH, filters=filters, backend="eager")
    assert qfpass.report(compiled).sites[0].score == "trained"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_trains_on_a_gpu_several_lessons_a_step(family: str) -> None:
    model = model_of(family).cuda()
    settings: dict[str, Any] = {"steps": 4, "lessons": 2, "batch": 3, "lengths": [LENGTH], "progress": False}
    filters = qfpass.train(model, CharacterTokenizer(), TEXTS, **settings)
    assert filters.source["batch"] == 3
    assert all(f.device.type == "cpu" and f.isfinite().all() for f in filters.filters)
    compiled = qfpass.compile(model, budget=24, context_length=LENGTH, filters=filters, backend="eager")
    assert "trained" in [site.score for site in qfpass.report(compiled).sites]


def test_refused() -> None:
    tokenizer = CharacterTokenizer()
    with pytest.raises(InputError, match="a text of more than"):
        qfpass.train(model_of(), tokenizer, ["short"], lengths=[LENGTH], progress=False)
    with pytest.raises(UnsupportedOpError, match=r"qfpass\.calibrate"):
        qfpass.train(model_of("gemma2"), tokenizer, TEXTS, lengths=[LENGTH], progress=False)
