"""qfpass.find and qfpass.rewrite: the pass without the rest of compile."""

import runpy
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from decoders import KV_HEADS, QUERY_HEADS, Attend, causal, decoder, masked, places, text, within
from tiny import FAMILIES
from torch.export import Dim

import qfpass
from qfpass.attention.find import Attention
from qfpass.errors import CaptureError, ConfigError, InputError, NoAttentionError, UnsupportedOpError
from qfpass.rewriting.site import Rule
from qfpass.rewriting.uncompressed import keep_all
from qfpass.store.ring import RingRule
from qfpass.store.scores import published, recency
from qfpass.store.slots import SlotRule

CONTEXT, SLOTS, RECENT, SINKS, CHUNK = 64, 12, 4, 2, 7
EXAMPLES = Path(__file__).parents[1] / "examples"


def both_ways(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """Attention that sees keys on both sides."""
    return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)


def newest(slots: int, sinks: int) -> Attend:
    """Attention over the first `sinks` tokens and the newest, `slots` in all."""

    def mask_of(positions: torch.Tensor) -> torch.Tensor:
        here, there = positions[:, None, :, None], positions[:, None, None, :]
        return (there <= here) & ((there < sinks) | (here - there < slots - sinks) | (here < slots))

    return masked(mask_of)


def exported(model: torch.nn.Module) -> torch.export.ExportedProgram:
    ids, shape = text(11, batch=2), {0: Dim.AUTO, 1: Dim.AUTO}
    return torch.export.export(model, (ids, places(ids)), dynamic_shapes=(shape, shape), strict=False)


def pieces(length: int) -> list[tuple[int, int]]:
    """Chunks of `CHUNK` tokens, then five single ones."""
    ends = [*range(0, length - 5, CHUNK), *range(length - 5, length + 1)]
    return list(pairwise(ends))


def test_a_model_and_an_export_of_it_have_the_same_attentions() -> None:
    model = decoder([causal, within(5)])
    of_model, of_export = qfpass.find(model, CONTEXT), qfpass.find(exported(model), CONTEXT)
    assert len(of_model) == 2 and not of_model.refused
    for mine, other in zip(of_model, of_export, strict=True):
        assert (mine.name, mine.form, mine.span) == (other.name, other.form, other.span)
        assert (mine.query_heads, mine.kv_heads) == (QUERY_HEADS, KV_HEADS)
    assert "window 5" in str(of_model)


def test_what_is_refused_is_named_and_the_rest_is_found() -> None:
    attentions = qfpass.find(decoder([causal, both_ways]), CONTEXT)
    assert [a.name for a in attentions] == ["layers.0"]
    assert list(attentions.refused) == ["layers.1"] and "bidirectional" in attentions.refused["layers.1"]
    with pytest.raises(UnsupportedOpError, match=r"layers\.1: bidirectional"):
        qfpass.rewrite(attentions, SlotRule(SLOTS, RECENT, SINKS, recency))


def test_a_graph_without_attention_is_refused() -> None:
    with pytest.raises(NoAttentionError):
        qfpass.find(decoder([]), CONTEXT)


def test_an_export_of_something_else_is_refused() -> None:
    program = torch.export.export(torch.nn.Linear(3, 3), (torch.ones(2, 3),))
    with pytest.raises(CaptureError, match="must take input_ids and position_ids"):
        qfpass.find(program)
    ids = text(11, batch=2)
    with pytest.raises(CaptureError, match="dynamic length"):
        qfpass.find(torch.export.export(decoder(), (ids, places(ids))))


@pytest.mark.parametrize(
    "rule", [SlotRule(SLOTS, RECENT, SINKS, recency), RingRule(6), RingRule(5, chunked=True)]
)
def test_a_rule_that_is_not_the_masks_is_refused(rule: Rule) -> None:
    attentions = qfpass.find(decoder([causal, within(5)]), CONTEXT)
    with pytest.raises(ConfigError, match=r"layers\.[01] is causal"):
        qfpass.rewrite(attentions, lambda _: rule)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match="slots are too few"):
        SlotRule(6, recent=4, sinks=2, score=recency)
    bounded = qfpass.rewrite(qfpass.find(decoder(), CONTEXT), SlotRule(SLOTS, RECENT, SINKS, published))
    with pytest.raises(InputError, match=f"give {SLOTS - 1} at most"):
        bounded.read(text(SLOTS), bounded.allocate(1), seen=0)
    with pytest.raises(InputError, match="give filters="):
        bounded.read(text(3), bounded.allocate(1), seen=0)


@torch.no_grad()
def test_layers_of_different_sizes_see_all_of_their_own_slots() -> None:
    model, ids, sizes = decoder(layers=3), text(40), (20, 10, 20)

    def rule(attention: Attention) -> SlotRule:
        return SlotRule(sizes[attention.index], recent=2, sinks=1, score=recency)

    rewritten = qfpass.rewrite(qfpass.find(model, CONTEXT), rule)
    stores = rewritten.allocate(batch=1)
    parts = [rewritten.read(ids[:, a:b], stores, seen=a) for a, b in pairwise(range(41))]
    assert [store.keys.shape[2] for store in stores] == list(sizes)
    torch.testing.assert_close(
        torch.cat(parts[:10], 1), model(ids, places(ids))[:, :10], atol=1e-4, rtol=1e-4
    )
    windows = decoder([newest(20, 1), newest(10, 1), newest(20, 1)])
    torch.testing.assert_close(torch.cat(parts, 1), windows(ids, places(ids)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("of_export", [False, True])
@torch.no_grad()
def test_with_every_key_kept_it_is_the_model(of_export: bool) -> None:
    model, ids = decoder([causal, within(5)]), text(40, batch=2)
    attentions = qfpass.find(exported(model) if of_export else model, CONTEXT)
    rewritten = qfpass.rewrite(attentions, lambda attention: keep_all(attention, CONTEXT))
    stores = rewritten.allocate(batch=2)
    parts = [rewritten.read(ids[:, a:b], stores, seen=a) for a, b in pieces(40)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids, places(ids)), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_bounded_it_is_what_compile_makes() -> None:
    model, ids = decoder([causal, within(5)]), text(40, batch=2)
    compiled = qfpass.compile(
        model, budget=SLOTS, recent=RECENT, sinks=SINKS, chunk=CHUNK, score="recency", backend="eager",
        context_length=CONTEXT,
    )  # fmt: skip

    def rule(attention: Attention) -> Rule:
        return RingRule(5) if attention.span.window else SlotRule(SLOTS, RECENT, SINKS, recency)

    rewritten, session = qfpass.rewrite(qfpass.find(model, CONTEXT), rule), compiled.session()
    stores = rewritten.allocate(batch=2)
    for a, b in pieces(40):
        logits = rewritten.read(ids[:, a:b], stores, seen=a)
        torch.testing.assert_close(logits, compiled(ids[:, a:b], past_key_values=session))
    assert stores[0].keys.shape[2] == SLOTS


@pytest.mark.parametrize("name", ["own_score", "own_loop"])
def test_the_examples_run(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert "tokens read" in capsys.readouterr().out


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gpt2"])
def test_a_model_without_numbers_is_looked_at(family: str) -> None:
    """Before its weights are loaded: the same attentions, and a rewritten graph of as many stores."""
    real = FAMILIES[family]()
    with torch.device("meta"):
        empty = type(real)(real.config).eval()
    found = qfpass.find(empty)
    assert str(found) == str(qfpass.find(real))
    assert len(qfpass.rewrite(found, SlotRule(SLOTS, RECENT, SINKS, recency)).sites) == len(found)
    with pytest.raises(CaptureError, match="on the meta device"):
        qfpass.compile(empty, budget=16)
