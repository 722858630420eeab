"""Baselines: scores against plain computation, and eviction against a model under a mask."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import FAMILIES
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from qfpass.errors import InputError
from qfpass.tools import evaluate
from qfpass.tools.evaluate.baselines import BASELINES, FUTURE, SINKS, Baseline, BaselineReader, ContextHeads
from qfpass.tools.evaluate.rotary import Rotary

Ids = Callable[..., torch.Tensor]
every_baseline = pytest.mark.parametrize("score", BASELINES)
LENGTH = 90


def one_layer() -> Any:
    return FAMILIES["llama"](layers=1, vocab=420)


@pytest.fixture(scope="module")
def captured() -> Baseline:
    """A baseline of the one-layer model; the score is for a test to set."""
    return Baseline(one_layer(), "keydiff")


@pytest.fixture(scope="module")
def captured_whole(model: nn.Module) -> Baseline:
    return Baseline(model, "keydiff")


def with_score(captured: Baseline, score: Callable[[ContextHeads], torch.Tensor]) -> Baseline:
    chosen = copy.copy(captured)
    chosen.score = score
    return chosen


@torch.no_grad()
def first_layer_heads(model: Any, ids: torch.Tensor) -> tuple[ContextHeads, torch.Tensor]:
    """What the first layer's attention reads, and its queries before rotary positions [B, Hq, S, D]."""
    layer, place = model.model.layers[0], torch.arange(ids.shape[1])[None]
    hidden = layer.input_layernorm(model.model.embed_tokens(ids))
    mixer = layer.self_attn
    query, key, value = (
        part(hidden).unflatten(-1, (-1, mixer.head_dim)).transpose(1, 2)
        for part in (mixer.q_proj, mixer.k_proj, mixer.v_proj)
    )
    turned = apply_rotary_pos_emb(query, key, *model.model.rotary_emb(hidden, place))
    return ContextHeads(*turned, value, mixer.scaling, model), query


def test_the_captured_graph_hands_over_what_attention_reads(captured: Baseline, random_ids: Ids) -> None:
    model, ids, seen = one_layer(), random_ids(2, LENGTH), list[ContextHeads]()

    def score(heads: ContextHeads) -> torch.Tensor:
        seen.append(heads)
        return heads.key.sum(-1)

    with_score(captured, score).reader(30, None, 4).prefill(ids)
    expected, _ = first_layer_heads(model, ids)
    assert len(seen) == 1
    assert seen[0].scale == pytest.approx(expected.scale)
    for name in ("query", "key", "value"):
        torch.testing.assert_close(getattr(seen[0], name), getattr(expected, name), atol=1e-5, rtol=1e-5)


def test_snapkv_is_the_pooled_attention_of_the_last_queries(random_ids: Ids) -> None:
    model, ids = one_layer(), random_ids(2, LENGTH)
    heads, _ = first_layer_heads(model, ids)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        (attention,) = model(input_ids=ids, output_attentions=True).attentions
    mean = attention[:, :, -64:].mean(2).unflatten(1, (2, 2)).mean(2)
    padded = F.pad(mean, (2, 2))
    expected = torch.stack([padded[..., i : i + LENGTH] for i in range(5)]).mean(0)
    torch.testing.assert_close(BASELINES["snapkv"](heads), expected)


def test_expected_attention_is_the_gaussian_mean_by_hand(random_ids: Ids) -> None:
    model, ids = one_layer(), random_ids(1, LENGTH)
    heads, plain = first_layer_heads(model, ids)
    score = BASELINES["expected_attention"](heads)
    shares = []
    cos, sin = model.model.rotary_emb(plain, torch.arange(LENGTH, LENGTH + FUTURE)[None])
    for head in range(4):
        query = plain[0, head, SINKS:]
        basis = torch.eye(8)[None, :, None].expand(1, 8, FUTURE, 8)
        turned, _ = apply_rotary_pos_emb(basis, basis, cos, sin)
        matrix = turned[0].mean(1).T  # column i: the mean of basis vector i, turned
        mean, covariance = matrix @ query.mean(0), matrix @ torch.cov(query.T, correction=0) @ matrix.T
        key = heads.key[0, head // 2]
        log = key @ mean * heads.scale + ((key @ covariance) * key).sum(-1) * heads.scale**2 / 2
        shares.append(log.softmax(-1))
    for head in range(2):
        expected = (shares[2 * head] + shares[2 * head + 1]) / 2 * heads.value[0, head].norm(dim=-1)
        torch.testing.assert_close(score[0, head], expected, atol=1e-5, rtol=1e-3)


def test_rotary_positions_are_undone(random_ids: Ids) -> None:
    model = one_layer()
    heads, plain = first_layer_heads(model, random_ids(2, LENGTH))
    undone = Rotary(model, 8).undo(heads.query, torch.arange(LENGTH))
    torch.testing.assert_close(undone, plain, atol=1e-5, rtol=1e-5)


def test_keydiff_keeps_keys_unlike_the_mean(random_ids: Ids) -> None:
    heads, _ = first_layer_heads(one_layer(), random_ids(2, LENGTH))
    score = BASELINES["keydiff"](heads)
    for row in range(2):
        for head in range(2):
            unit = heads.key[row, head] / heads.key[row, head].norm(dim=-1, keepdim=True)
            anchor = unit.mean(0) / unit.mean(0).norm()
            torch.testing.assert_close(score[row, head], -(unit @ anchor), atol=1e-5, rtol=1e-5)


@every_baseline
def test_with_room_for_every_key_it_is_the_model(
    model: nn.Module, captured_whole: Baseline, random_ids: Ids, score: str
) -> None:
    ids = random_ids(2, 100)
    with torch.no_grad():
        whole = model(input_ids=ids).logits
    reader = with_score(captured_whole, BASELINES[score]).reader(200, None, 4)
    reader.prefill(ids[:, :80])
    parts = [reader.read(ids[:, a:b]) for a, b in ((80, 95), (95, 96), (96, 100))]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole[:, 80:], atol=1e-4, rtol=1e-4)
    token_bytes = 2 * 2 * 2 * 8 * 4
    assert reader.footprint == evaluate.Footprint(200, 100 * token_bytes)


@every_baseline
def test_what_follows_sees_the_kept_keys_only(captured: Baseline, random_ids: Ids, score: str) -> None:
    """One layer, so that a mask of the question's rows says all that eviction does."""
    model, ids, slots, recent, sinks = one_layer(), random_ids(2, LENGTH + 12), 30, 7, 3
    heads, _ = first_layer_heads(model, ids[:, :LENGTH])
    rank = BASELINES[score](heads)
    rank[..., :sinks] = rank[..., -recent:] = float("inf")
    kept = torch.zeros_like(rank, dtype=torch.bool)
    kept.scatter_(-1, rank.argsort(-1, descending=True)[..., :slots], True)
    mask = torch.ones(2, 4, LENGTH + 12, LENGTH + 12, dtype=torch.bool).tril()
    mask[:, :, LENGTH:, :LENGTH] = kept.repeat_interleave(2, dim=1)[:, :, None]
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits[:, LENGTH:]
    reader = with_score(captured, BASELINES[score]).reader(slots, recent, sinks)
    reader.prefill(ids[:, :LENGTH])
    assert reader.footprint.nbytes == slots * 2 * 2 * 8 * 4
    parts = [reader.read(ids[:, LENGTH : LENGTH + 11]), reader.read(ids[:, LENGTH + 11 :])]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-4, rtol=1e-4)


def test_a_quarter_is_recent_by_default(captured: Baseline, random_ids: Ids) -> None:
    model, ids = one_layer(), random_ids(1, LENGTH)
    with torch.no_grad():
        cache = model(input_ids=ids, past_key_values=DynamicCache(), use_cache=True).past_key_values
    oldest = torch.arange(LENGTH, 0, -1.0).expand(1, 2, -1)
    reader = with_score(captured, lambda heads: oldest).reader(20, None, 4)
    reader.prefill(ids)
    wanted = [*range(15), *range(LENGTH - 5, LENGTH)]
    held: Any = reader._cache.layers[0]
    torch.testing.assert_close(held.keys, cache.layers[0].keys[:, :, wanted], atol=1e-5, rtol=1e-5)


def test_a_method_runs_a_baseline(model: nn.Module, random_ids: Ids) -> None:
    bounded = evaluate.Bounded(model, evaluate.Method("snapkv", ratio=4))
    reader = evaluate.open_reader(bounded, 64)
    assert isinstance(reader, BaselineReader)
    assert reader.slots == 16
    second = evaluate.open_reader(bounded, 128)
    assert second.slots == 32
    reader.prefill(random_ids(1, 64))
    with pytest.raises(InputError, match="one call of prefill"):
        reader.prefill(random_ids(1, 4))


def test_perplexity_refuses_what_evicts_only_once(model: nn.Module, random_ids: Ids) -> None:
    bounded = evaluate.Bounded(model, evaluate.Method("keydiff", budget=16))
    with pytest.raises(InputError, match="evicts while it reads"):
        evaluate.perplexity(bounded, random_ids(1, 40))


def test_refused() -> None:
    with pytest.raises(InputError, match="see a window"):
        Baseline(FAMILIES["gemma3"](), "snapkv")
    with pytest.raises(InputError, match="Hugging Face"):
        Baseline(nn.Linear(1, 1), "snapkv")
    with pytest.raises(InputError, match="a part of it"):
        Rotary(FAMILIES["gpt_neox"](), 8)
    with pytest.raises(InputError, match="one rotary_emb module"):
        Rotary(FAMILIES["gpt2"](), 8)
