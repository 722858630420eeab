"""Drafts through transformers' own generate: lookup, a draft model, two tokenizers; and guidance."""

import dataclasses
from typing import Any

import pytest
import torch
from bounded import run_plainly
from drafted import Calls, require_choices, with_end
from rows import text
from tiny import FAMILIES
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn
from transformers import PreTrainedTokenizerFast

import qfpass
from qfpass.errors import InputError, SessionError
from qfpass.model.drafts import tokens_kept


def compiled(model: nn.Module, **settings: Any) -> nn.Module:
    return run_plainly(qfpass.compile(model, backend="eager", verify=False, **settings))


SMALL = {"budget": 24, "chunk": 8, "score": "random"}
ORIGINAL, DRAFT = with_end(FAMILIES["llama"]()), with_end(FAMILIES["llama"](seed=1, layers=1))
MODEL, BOUNDED = compiled(ORIGINAL, ratio=1), compiled(ORIGINAL, **SMALL)
COMPILED_DRAFT = compiled(DRAFT, **SMALL)
IDS = text(7).repeat(1, 5)
GREEDY = {"max_new_tokens": 24, "do_sample": False}
LOOKUP = {"prompt_lookup_num_tokens": 4}
DRAFTS: dict[str, dict[str, Any]] = {
    "lookup": LOOKUP,
    "a draft": {"assistant_model": DRAFT},
    "a compiled draft": {"assistant_model": COMPILED_DRAFT},
    "itself": {"assistant_model": MODEL},
}


@pytest.mark.parametrize("drafts", DRAFTS.values(), ids=DRAFTS)
def test_drafts_write_what_greedy_decoding_writes(drafts: dict[str, Any]) -> None:
    wanted = ORIGINAL.generate(IDS, **GREEDY)
    assert torch.equal(MODEL.generate(IDS, **drafts, **GREEDY), wanted)


def test_a_compiled_draft_drafts_for_another_model() -> None:
    out = ORIGINAL.generate(IDS, assistant_model=COMPILED_DRAFT, **GREEDY)
    assert torch.equal(out, ORIGINAL.generate(IDS, **GREEDY))


def test_what_a_draft_gets_right_is_read_in_one_call() -> None:
    with Calls(MODEL) as calls:
        MODEL.generate(IDS, assistant_model=ORIGINAL, **GREEDY)
    assert calls.seen == [(0, 40), (40, 6), (46, 6), (52, 6)]


@pytest.mark.parametrize("draft", [ORIGINAL, MODEL], ids=["a draft", "a compiled draft"])
def test_drafts_are_sampled_as_the_original_samples_them(draft: nn.Module) -> None:
    written = []
    for model, its_draft in ((ORIGINAL, ORIGINAL), (MODEL, draft)):
        torch.manual_seed(0)
        written.append(model.generate(IDS, assistant_model=its_draft, do_sample=True, max_new_tokens=12))
    assert torch.equal(*written)


def test_past_a_full_store_each_token_is_the_models_choice_in_these_pieces() -> None:
    """Tokens that were taken back leave no trace: others in their place give the same choices."""
    with Calls(BOUNDED) as calls:
        out = BOUNDED.generate(IDS, **LOOKUP, **GREEDY)
    assert any(end - start < read for start, read, end in calls.pieces(out))
    require_choices(BOUNDED, calls.pieces(out), out, IDS.shape[1], LOOKUP["prompt_lookup_num_tokens"] + 1)


def test_a_session_goes_on_with_drafts_and_takes_back_what_it_did_before() -> None:
    session, whole = MODEL.session(take_back=2), torch.cat([IDS, text(9, seed=5)], 1)
    MODEL(IDS, past_key_values=session)
    out = MODEL.generate(whole, past_key_values=session, **LOOKUP, **GREEDY)
    assert torch.equal(out, MODEL.generate(whole, **GREEDY))
    assert session.take_back == 2 and session.columns == out.shape[1] - 1
    session.crop(-2)
    new = text(9, seed=6)
    whole = torch.cat([out[:, :-3], new], 1)
    mask = torch.ones_like(whole)
    out = MODEL.generate(new, past_key_values=session, attention_mask=mask, **LOOKUP, **GREEDY)
    wanted = MODEL.generate(whole, attention_mask=mask, **GREEDY)
    assert torch.equal(out[:, 9:], wanted[:, whole.shape[1] :])
    session = MODEL.session()
    MODEL.generate(IDS, past_key_values=session, **LOOKUP, **GREEDY)
    assert not session.is_croppable and not session.journal.pieces


def test_drafts_end_where_the_context_does() -> None:
    plain, drafted = (
        BOUNDED.generate(text(200), max_new_tokens=100, do_sample=False, eos_token_id=60, **drafts)
        for drafts in ({}, LOOKUP)
    )
    assert drafted.shape == plain.shape


def test_a_draft_that_can_take_little_back_reads_again() -> None:
    draft = compiled(DRAFT, budget=12, recent=2, chunk=8, score="random")
    out = MODEL.generate(IDS, assistant_model=draft, **GREEDY)
    assert torch.equal(out, MODEL.generate(IDS, **GREEDY))


def test_guidance_is_what_it_is_on_the_original() -> None:
    settings = {"guidance_scale": 1.5, "negative_prompt_ids": text(7, seed=9), **GREEDY}
    assert torch.equal(MODEL.generate(IDS, **settings), ORIGINAL.generate(IDS, **settings))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"speculation_type": "dflash", "assistant_model": DRAFT}, "speculation_type='dflash' is not"),
        ({"assistant_early_exit": 1, "use_mtp": True}, "assistant_early_exit and use_mtp each draft"),
        ({"assistant_model": DRAFT, **LOOKUP}, "prompt_lookup_num_tokens and assistant_model each draft"),
        ({"guidance_scale": 2.0, **LOOKUP}, "guidance_scale is not possible with drafts"),
    ],
)
def test_drafts_that_need_more_than_a_compiled_decoder_gives_are_refused(
    settings: dict[str, Any], reason: str
) -> None:
    if not all(hasattr(ORIGINAL.generation_config, name) for name in {*settings} - {"assistant_model"}):
        pytest.skip("not in this version of transformers")
    session = MODEL.session()
    with pytest.raises(InputError, match=reason):
        MODEL.generate(IDS, past_key_values=session, **settings, **GREEDY)
    assert session.tokens_seen == 0


def test_a_session_that_can_take_nothing_back_is_refused() -> None:
    session = BOUNDED.session()
    session.sizes = dataclasses.replace(session.sizes, recent=1)
    with pytest.raises(SessionError, match=r"can take back 1, .*recent of 8"):
        tokens_kept(BOUNDED.qfpass_decoder, session, ORIGINAL.generation_config)


def tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    tokens = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="w2"))
    tokens.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="w0", eos_token="w0", unk_token="w2", padding_side="left"
    )


WORDS = [f"w{i}" for i in range(67)]
TWO_TOKENIZERS = {
    "tokenizer": tokenizer(WORDS[:61]),
    "assistant_tokenizer": tokenizer([*WORDS[:3], *WORDS[:2:-1]]),
}


def draft_of_67_words() -> nn.Module:
    return with_end(FAMILIES["llama"](seed=2, layers=1, vocab=67))


def test_a_draft_with_a_tokenizer_of_its_own() -> None:
    draft = compiled(draft_of_67_words(), **SMALL)
    out = MODEL.generate(IDS, assistant_model=draft, **TWO_TOKENIZERS, **GREEDY)
    assert torch.equal(out, MODEL.generate(IDS, **GREEDY))
    with pytest.raises(InputError, match=r"two tokenizers.*give the original"):
        MODEL.generate(IDS, assistant_model=draft, **TWO_TOKENIZERS, do_sample=True, max_new_tokens=9)


def test_sampling_with_two_tokenizers() -> None:
    """Of many likely tokens: transformers' own rule fails now and then where only one is left."""
    settings = {**TWO_TOKENIZERS, "do_sample": True, "min_new_tokens": 9, "max_new_tokens": 9}
    session = MODEL.session()
    with Calls(MODEL) as calls:
        out = MODEL.generate(IDS, past_key_values=session, assistant_model=draft_of_67_words(), **settings)
    assert out.shape == (1, 44) and torch.equal(out[:, :35], IDS) and int(out.max()) < 61
    assert session.columns == 43 and max(read for _, read in calls.seen[1:]) > 1
