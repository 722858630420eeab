"""Embeddings in the place of ids, and hidden states beside the logits."""

import functools
from itertools import pairwise
from typing import Any

import pytest
import torch
from bounded import CONTEXT, compiled
from tiny import FAMILIES, FORMS
from torch import nn
from transformers import LlamaForCausalLM

from qfpass.errors import InputError

KEEP_ALL = {"budget": CONTEXT, "context_length": CONTEXT}
BUILDERS = {**FAMILIES, **FORMS}


def text(length: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 61, (batch, length), generator=torch.Generator().manual_seed(seed))


@functools.cache
def kept(family: str) -> tuple[nn.Module, Any]:
    """A tiny model, and what it compiles to with every key kept."""
    original = BUILDERS[family]()
    return original, compiled(original, **KEEP_ALL)


@functools.cache
def bounded() -> tuple[nn.Module, Any]:
    original = FAMILIES["llama"]()
    return original, compiled(original)


# Gemma 2 scales embeddings behind its inputs_embeds, Gemma 3 before; GPT-2 adds positions to them.
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt2", "bloom"])
@torch.no_grad()
def test_embeddings_are_read_and_hidden_states_given_as_by_the_original(family: str) -> None:
    original, model = kept(family)
    ids = text(30, batch=2)
    embeddings = original.get_input_embeddings()(ids) + 0.3 * torch.randn(2, 30, 1)
    expected = original(inputs_embeds=embeddings, output_hidden_states=True)
    session, parts = model.session(), []
    for a, b in pairwise((0, 1, 3, 20, 21, 30)):
        given = {"inputs_embeds": embeddings[:, a:b], "past_key_values": session}
        parts.append(model(**given, output_hidden_states=True))
    close = functools.partial(torch.testing.assert_close, atol=1e-4, rtol=1e-4)
    close(torch.cat([part.logits for part in parts], 1), expected.logits)
    close(model(inputs_embeds=embeddings).logits, expected.logits)
    for number, state in enumerate(expected.hidden_states):
        close(torch.cat([part.hidden_states[number] for part in parts], 1), state)


@torch.no_grad()
def test_ids_and_embeddings_mix_over_a_bounded_session() -> None:
    original, model = bounded()
    ids, embed = text(44), original.get_input_embeddings()
    expected, session = model(ids).logits, model.session()
    by_ids, by_embeddings = model.session(), model.session()
    for i, (a, b) in enumerate(pairwise((0, 8, 16, 24, 32, 40, 41, 42, 43, 44))):
        given = {"inputs_embeds": embed(ids[:, a:b])} if i % 2 else {"input_ids": ids[:, a:b]}
        out = model(**given, past_key_values=session, output_hidden_states=[-1] if i % 3 else None)
        torch.testing.assert_close(out.logits[:, : min(b, 16) - a], expected[:, a : min(b, 16)])
        same = model(ids[:, a:b], past_key_values=by_ids).logits
        again = model(inputs_embeds=embed(ids[:, a:b]), past_key_values=by_embeddings).logits
        torch.testing.assert_close(out.logits, same, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(again, same, atol=1e-5, rtol=1e-5)
    for layer in range(2):
        assert torch.equal(session.positions(layer), by_ids.positions(layer))
    assert session.nbytes == by_ids.nbytes


class InPlace(LlamaForCausalLM):
    """Multiplies embeddings in place, as CTRL does."""

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **named: Any,
    ) -> Any:
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        inputs_embeds *= 2
        return super().forward(position_ids=position_ids, inputs_embeds=inputs_embeds, **named)


@torch.no_grad()
def test_embeddings_that_the_original_writes_into_are_left_as_they_were() -> None:
    original = FAMILIES["llama"]()
    original.__class__ = InPlace
    model = compiled(original, **KEEP_ALL)
    ids = text(12)
    embeddings = original.get_input_embeddings()(ids)
    given = embeddings.clone()
    torch.testing.assert_close(model(inputs_embeds=given).logits, original(ids).logits, atol=1e-4, rtol=1e-4)
    assert torch.equal(given, embeddings)


@torch.no_grad()
def test_named_hidden_states_are_those_of_the_whole_list() -> None:
    _, model = bounded()
    ids = text(20)
    whole = model(ids, output_hidden_states=True, logits_to_keep=1)
    named = model(ids, output_hidden_states=[-1, 1])
    assert whole.logits.shape[1] == 1
    assert whole.hidden_states[0].shape == (1, 20, 32)
    assert len(whole.hidden_states) == 3
    *_, as_tuple = model(ids, output_hidden_states=True, return_dict=False)
    torch.testing.assert_close(as_tuple, whole.hidden_states)
    for actual, number in zip(named.hidden_states, (-1, 1), strict=True):
        torch.testing.assert_close(actual, whole.hidden_states[number])


@torch.no_grad()
def test_padding_is_padding_among_embeddings_too() -> None:
    original, model = kept("llama")
    ids = text(12, batch=2)
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    embeddings = original.get_input_embeddings()(ids).masked_fill(mask[..., None] == 0, torch.nan)
    actual = model(inputs_embeds=embeddings, attention_mask=mask).logits
    torch.testing.assert_close(actual, model(ids, attention_mask=mask).logits, atol=1e-5, rtol=1e-5)


def test_plain_calls_have_the_graphs_that_they_had() -> None:
    original = FAMILIES["llama"]()
    model = compiled(original)
    model(text(20))
    before = model.qfpass_decoder.graphs_compiled
    model(text(20), output_hidden_states=True)
    after = model.qfpass_decoder.graphs_compiled
    assert after > before
    model(text(21))
    assert model.qfpass_decoder.graphs_compiled == after


def test_what_cannot_be_is_refused_by_name() -> None:
    _, model = bounded()
    embeddings = torch.zeros(1, 3, 32)
    for given, words in (
        ({"inputs_embeds": embeddings, "input_ids": text(3)}, "both given"),
        ({"inputs_embeds": embeddings[..., :8]}, "8 numbers per token"),
        ({"inputs_embeds": embeddings[0]}, "must be"),
        ({"inputs_embeds": text(3)}, "floating-point"),
        ({"input_ids": text(3), "output_hidden_states": [3]}, "3 hidden states"),
        ({"input_ids": text(3), "output_attentions": True}, "output_attentions"),
    ):
        session = model.session()
        with pytest.raises(InputError, match=words):
            model(**given, past_key_values=session)
        assert session.tokens_seen == 0


@torch.no_grad()
def test_generate_begins_with_embeddings_and_a_chat_goes_on_with_ids() -> None:
    original, model = bounded()
    ids, embed = text(20), original.get_input_embeddings()
    settings = {"max_new_tokens": 6, "do_sample": False}
    session, by_ids = model.session(), model.session()
    written = model.generate(inputs_embeds=embed(ids), past_key_values=session, **settings)
    whole = model.generate(ids, past_key_values=by_ids, **settings)
    assert torch.equal(written, whole[:, 20:])
    turn = torch.cat([written[:, -1:], text(3, seed=1)], 1)  # the last token that was written isn't read yet
    mask = torch.ones(1, session.columns + 4, dtype=torch.long)
    for given in (
        {"input_ids": turn, "attention_mask": mask},
        {"inputs_embeds": embed(turn), "attention_mask": mask},
    ):
        expected = model.generate(turn, attention_mask=mask, past_key_values=by_ids.fork(), **settings)
        actual = model.generate(**given, past_key_values=session.fork(), **settings)
        assert torch.equal(actual[:, -6:], expected[:, -6:])


def test_ids_that_begin_like_ids_and_go_on_like_embeddings_are_refused() -> None:
    original, model = bounded()
    ids, session = text(12), model.session()
    model(ids[:, :4], past_key_values=session)
    model(inputs_embeds=original.get_input_embeddings()(ids[:, 4:8]), past_key_values=session)
    with pytest.raises(InputError, match="embeddings from token 4"):
        model.generate(ids, past_key_values=session, max_new_tokens=2)
    assert session.tokens_seen == 8
