"""Scores: what they compute, and that a key's score depends on nothing but the key."""

from typing import Any

import pytest
import torch
from decoders import decoder, text
from often import often
from torch import Tensor

import qfpass
from qfpass.errors import ConfigError
from qfpass.store.scores import SCORES, Score, knorm, published, random, recency, score_named


def operands(score: Score = SCORES["published"]) -> tuple[torch.Tensor, ...]:
    """Keys of 4 numbers and values of 6 of three heads, positions, and filters as the score reads them."""
    width = 3 * (4 + 6) + 2 if score.reads_all_heads else 4
    generator = torch.Generator().manual_seed(0)
    key = torch.randn(2, 3, 5, 4, generator=generator)
    value = torch.randn(2, 3, 5, 6, generator=generator)
    position = torch.arange(10, 15).expand(2, -1)
    return key, value, position, torch.randn(3, width, generator=generator)


def test_published_is_the_projection_on_the_heads_filter() -> None:
    key, value, position, filters = operands()
    score = published(key, value, position, filters)
    wanted = torch.stack([key[:, h] @ filters[h] for h in range(3)], dim=1)
    torch.testing.assert_close(score, wanted)


def test_published_adds_up_in_float32() -> None:
    key, value, position, filters = operands()
    half = key.bfloat16()
    score = published(half, value, position, filters)
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, published(half.float(), value, position, filters))


def test_recency_is_the_position_for_every_head() -> None:
    key, value, position, _ = operands()
    score = recency(key, value, position, None)
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, position[:, None].expand(2, 3, 5).float())


def test_knorm_keeps_small_keys() -> None:
    key, value, position, _ = operands()
    torch.testing.assert_close(knorm(key, value, position, None), -(key**2).sum(-1).sqrt())


def test_random_is_uniform_and_differs_by_head() -> None:
    positions = torch.arange(20_000)[None]
    nothing = torch.zeros(1, 4, positions.shape[1], 1)
    share = random(nothing, nothing, positions, None)[0] / 2**24
    assert bool((share >= 0).all()) and bool((share < 1).all())
    assert (share.mean(-1) - 0.5).abs().max() < 0.01
    tenths = torch.stack([torch.histc(head, 10, 0, 1) for head in share])
    assert (tenths / 2000 - 1).abs().max() < 0.15
    # Neighbouring positions and heads choose independently of each other.
    pairs = (share[:, 1:], share[:, :-1]), (share[1:], share[:-1])
    for a, b in pairs:
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert correlation.abs() < 0.02


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_a_cut_does_not_change_scores(score: Score) -> None:
    key, value, position, filters = operands(score)
    whole = score(key, value, position, filters)
    parts = [
        score(key[:, :, cut], value[:, :, cut], position[:, cut], filters)
        for cut in (slice(0, 1), slice(1, 4), slice(4, 5))
    ]
    torch.testing.assert_close(torch.cat(parts, dim=-1), whole)


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_only_scores_that_need_filters_read_them(score: Score) -> None:
    key, value, position, filters = operands(score)
    first = score(key, value, position, filters)
    second = score(key, value, position, -filters)
    assert torch.equal(first, second) is not (score.filters is not None)


def test_a_trained_score_keeps_more_of_the_newest_the_larger_its_store() -> None:
    recent = SCORES["trained"].recent
    assert [recent(n) for n in (5, 128, 256, 512, 1024, 4096)] == [1, 16, 32, 128, 512, 2048]
    assert all(0 < recent(n) <= recent(n + 1) <= (n + 1) / 2 for n in range(2, 3000))
    assert (SCORES["published"].recent(1024), SCORES["recency"].recent(1024)) == (512, 256)


class LastPlaces(Score):
    """Positions times a factor."""

    def __init__(self, factor: Any) -> None:
        self.factor = factor

    def __call__(self, keys: Tensor, values: Tensor, positions: Tensor, filters: Tensor | None) -> Tensor:
        return self.factor * recency(keys, values, positions, filters)


class OfTheMean(LastPlaces):
    def __call__(self, keys: Tensor, values: Tensor, positions: Tensor, filters: Tensor | None) -> Tensor:
        return (keys - keys.mean(2, keepdim=True)).norm(dim=-1)


class OfOneHead(LastPlaces):
    def __call__(self, keys: Tensor, values: Tensor, positions: Tensor, filters: Tensor | None) -> Tensor:
        return positions.float()


class Failing(LastPlaces):
    def __call__(self, keys: Tensor, values: Tensor, positions: Tensor, filters: Tensor | None) -> Tensor:
        raise ValueError("no idea")


def test_scores_of_ones_own_are_equal_if_they_hold_the_same() -> None:
    assert LastPlaces(2.0) == LastPlaces(2.0) != LastPlaces(3.0)
    assert hash(LastPlaces(2.0)) == hash(LastPlaces(2.0))
    assert repr(LastPlaces(2.0)) == "LastPlaces(factor=2.0)"
    assert score_named(LastPlaces(2.0)) == LastPlaces(2.0)


def test_a_score_without_a_call_can_not_be_made() -> None:
    class Empty(Score):
        pass

    with pytest.raises(TypeError, match="__call__"):
        Empty()  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("score", "said"),
    [
        (OfTheMean(1.0), "changes when it is read with others"),
        (OfOneHead(1.0), "one finite number a head and token"),
        (LastPlaces(float("inf")), "one finite number a head and token"),
        (Failing(1.0), "Failing fails for keys .*: no idea"),
        ("newest", "must be one of published, .*, or a qfpass.Score"),
        (3, "or a qfpass.Score, not 3"),
        (LastPlaces([2.0]), "can't be hashed .*: hold numbers"),
    ],
)
def test_a_score_that_breaks_the_contract_is_refused(score: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        qfpass.compile(decoder(), budget=12, score=score, context_length=64, backend="eager")


class ByHead(Score):
    """Weights made for a model: [Hkv, D], in half precision if the keys are."""

    def __call__(self, keys: Tensor, values: Tensor, positions: Tensor, filters: Tensor | None) -> Tensor:
        weights = torch.arange(1.0, 17.0, dtype=keys.dtype, device=keys.device).view(2, 8)
        return torch.einsum("bhsd,hd->bhs", keys, weights)


@pytest.mark.parametrize("backend", often(["eager"], ["eager", "inductor"]))
@torch.no_grad()
def test_a_score_made_for_a_model_in_half_precision(backend: str) -> None:
    compiled: Any = qfpass.compile(
        decoder().bfloat16(), budget=12, chunk=7, score=ByHead(), context_length=64, backend=backend
    )
    session = compiled.session()
    compiled(text(30), past_key_values=session)
    compiled(text(1), past_key_values=session)
    assert session.stores[0].scores.dtype == torch.float32 and session.tokens_seen == 31


@torch.no_grad()
def test_a_score_of_ones_own_decides_what_is_kept() -> None:
    model, ids = decoder(), text(40, batch=2)
    kept = []
    for score in ("recency", LastPlaces(2.0), LastPlaces(-1.0)):
        compiled: Any = qfpass.compile(
            model, budget=12, recent=2, sinks=1, score=score, context_length=64, backend="eager"
        )
        session = compiled.session()
        compiled(ids, past_key_values=session)
        kept.append(session.positions(0).sort().values)
    torch.testing.assert_close(kept[0], kept[1])
    assert kept[2][0, 0].tolist() == [*range(10), 38, 39]
