"""Contexts filled at random have the real shapes, and their steps really step."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from qfpass.tools.bench.bandwidth import weight_nbytes
from qfpass.tools.bench.contenders import BoundedContender, BoundedContext, Contender, FullContext
from qfpass.tools.bench.setup import Setup, full_caches

SLOTS, CONTEXT = 16, 100
KINDS = ("eager", "static", "bounded", "unevicted")


@pytest.fixture(scope="module")
def contenders(setup: Setup, model: nn.Module) -> dict[str, Contender]:
    bounded = setup.bounded(model, SLOTS, CONTEXT, "bounded")
    return {
        **full_caches(model, "eager"),
        "bounded": bounded,
        "unevicted": setup.unevicted(model, SLOTS, CONTEXT),
    }


def seen(context: Any) -> int:
    cache = context.session if isinstance(context, BoundedContext) else context.cache
    return int(cache.get_seq_length())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_step_moves_on_by_one_token(contenders: dict[str, Contender], kind: str, batch: int) -> None:
    context = contenders[kind].after(40, batch, room=4)
    ids = torch.ones(batch, 1, dtype=torch.long)
    for step in (1, 2):
        logits = context.read(ids)
        assert logits.shape[:2] == (batch, 1) and logits.isfinite().all()
        assert seen(context) == 40 + step


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_held_changes_the_logits(contenders: dict[str, Contender], kind: str) -> None:
    ids = torch.ones(1, 1, dtype=torch.long)
    first, second = (contenders[kind].after(40, 1, room=4).read(ids) for _ in range(2))
    assert not torch.equal(first, second)


def test_the_bounded_step_evicts_and_the_other_does_not(contenders: dict[str, Contender]) -> None:
    context: Any = contenders["bounded"].after(40, 1)
    before = context.session.positions(0).clone()
    context.read(torch.ones(1, 1, dtype=torch.long))
    after = context.session.positions(0)
    assert ((before != after).sum(-1) == 1).all() and (after == 40).any(-1).all()
    unevicted: Any = contenders["unevicted"].after(40, 1)
    assert [len(store) for store in unevicted.session.stores] == [2, 2]  # keys and values alone


def test_a_real_prompt_reads_as_transformers_reads_it(contenders: dict[str, Contender], model: Any) -> None:
    ids = torch.randint(61, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(input_ids=ids).logits[:, -1:]
    for kind in ("eager", "bounded", "unevicted"):
        torch.testing.assert_close(contenders[kind].after(0, 1).read(ids), expected)


def test_twins_go_on_by_themselves(contenders: dict[str, Contender]) -> None:
    ids = torch.ones(1, 3, dtype=torch.long)
    for kind in ("eager", "bounded"):
        context = contenders[kind].after(20, 1)
        first = context.twin().read(ids)
        assert seen(context) == 20
        torch.testing.assert_close(context.twin().read(ids), first)


def test_bytes_of_what_is_filled(contenders: dict[str, Contender], model: Any) -> None:
    config = model.config
    a_token = 4 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    assert contenders["eager"].after(40, 3).nbytes == 3 * 40 * a_token
    scored = a_token + 8 * config.num_hidden_layers * config.num_key_value_heads
    assert contenders["bounded"].after(40, 3).nbytes == 3 * SLOTS * scored
    assert contenders["bounded"].after(4, 1).nbytes == 4 * scored
    assert contenders["unevicted"].after(40, 1).nbytes == SLOTS * a_token
    assert isinstance(contenders["bounded"], BoundedContender) and contenders["bounded"].slots == SLOTS


def test_an_untied_embedding_is_looked_up_not_read(model: Any) -> None:
    whole = sum(p.nbytes for p in model.parameters())
    assert weight_nbytes(model) == whole - model.get_input_embeddings().weight.nbytes
    assert weight_nbytes(nn.Linear(3, 5)) == 80


def test_a_cache_of_one_token_is_what_the_model_made(model: Any) -> None:
    context = full_caches(model, "eager")["eager"].after(1, 2)
    assert isinstance(context, FullContext) and isinstance(context.cache, DynamicCache)
    assert context.cache.get_seq_length() == 1
