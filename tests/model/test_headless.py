"""Models that don't predict tokens: without a head, and for sequence classification."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from bounded import compiled
from decoders import text
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    GPT2Config,
    LlamaConfig,
    LlamaForCausalLM,
)

import qfpass
from qfpass.errors import InputError, UnsupportedOpError
from qfpass.upstream.cache import CACHE_NAMES

KEEP_ALL = {"budget": 48}
PADDING = 0


def llama_config(**settings: Any) -> LlamaConfig:
    chosen: dict[str, Any] = {
        "vocab_size": 19, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 48,
        "initializer_range": 0.2, "num_labels": 3, "pad_token_id": PADDING,
    }  # fmt: skip
    return LlamaConfig(**(chosen | settings))


def gpt2_config() -> GPT2Config:
    return GPT2Config(
        vocab_size=19, n_embd=32, n_layer=2, n_head=4, n_positions=48, initializer_range=0.2,
        num_labels=3, pad_token_id=PADDING, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip


def made(auto: Any, config: Any) -> nn.Module:
    torch.manual_seed(0)
    return auto.from_config(config).eval()


def short_text(length: int, batch: int = 1) -> torch.Tensor:
    return text(length, batch) % 18 + 1  # no padding


@pytest.mark.parametrize("config", [llama_config(), gpt2_config()], ids=["llama", "gpt2"])
@torch.no_grad()
def test_a_model_without_a_head_gives_its_last_hidden_values(config: Any) -> None:
    original = made(AutoModel, config)  # of more hidden channels than ids
    model, ids = compiled(original, **KEEP_ALL), short_text(30, batch=2)
    expected = original(ids).last_hidden_state
    session = model.session()
    parts = [model(ids[:, a:b], past_key_values=session) for a, b in pairwise((0, 1, 3, 20, 21, 30))]
    assert all(getattr(part, name) is session for part in parts for name in CACHE_NAMES)
    actual = torch.cat([part.last_hidden_state for part in parts], 1)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert model(ids, return_dict=False)[0].shape == expected.shape


@torch.no_grad()
def test_the_hidden_values_of_a_bounded_backbone_are_those_that_its_language_model_computes() -> None:
    torch.manual_seed(0)
    whole = LlamaForCausalLM(llama_config()).eval()
    backbone, language_model, ids = compiled(whole.model), compiled(whole), short_text(40)
    hidden = backbone(ids).last_hidden_state
    torch.testing.assert_close(whole.lm_head(hidden), language_model(ids).logits, atol=1e-4, rtol=1e-4)


def test_a_backbone_makes_filters_of_its_own_and_keeps_keys_in_its_dtype(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    original = made(AutoModel, llama_config(max_position_embeddings=200))
    model = qfpass.compile(original, ratio=4, backend="eager")
    assert model.qfpass_decoder.filters is not None
    assert model.qfpass_decoder.config.store_dtype is None
    with pytest.raises(UnsupportedOpError, match="predicts no tokens"):
        qfpass.train(original, None, [])


@pytest.mark.parametrize("config", [llama_config(), gpt2_config()], ids=["llama", "gpt2"])
@torch.no_grad()
def test_a_sequence_classifier_scores_the_token_that_its_original_scores(config: Any) -> None:
    original = made(AutoModelForSequenceClassification, config)
    model = compiled(original, **KEEP_ALL)
    ids = short_text(12, batch=3)
    ids[1, 9:] = PADDING
    ids[2, :4] = PADDING
    mask = (ids != PADDING).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = original(ids, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(model(ids, attention_mask=mask).logits, expected, atol=1e-4, rtol=1e-4)
    one = short_text(7)
    torch.testing.assert_close(model(one, return_dict=False)[0], original(one).logits, atol=1e-4, rtol=1e-4)
    session = model.session()
    model(one[:, :5], past_key_values=session)
    scored = model(one[:, 5:], past_key_values=session).logits
    torch.testing.assert_close(scored, original(one).logits, atol=1e-4, rtol=1e-4)


def test_a_classifier_without_a_padding_id_takes_one_row() -> None:
    original = made(AutoModelForSequenceClassification, llama_config(pad_token_id=None))
    model = compiled(original, **KEEP_ALL)
    with torch.no_grad():
        expected = original(short_text(7)).logits
    torch.testing.assert_close(model(short_text(7)).logits, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(InputError, match="needs a padding id"):
        model(short_text(7, batch=2))
    with pytest.raises(InputError, match="input_ids is missing"):
        model()
