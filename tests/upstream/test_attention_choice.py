"""What transformers promises of choosing a model's attention."""

import pytest
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from qfpass.upstream.attention_choice import attention_choice


def test_attention_choice_is_what_was_set() -> None:
    config = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8
    )
    model = LlamaForCausalLM(config)
    assert attention_choice(model) == "sdpa"
    for name in ("eager", "sdpa"):
        model.set_attn_implementation(name)
        assert attention_choice(model) == name
        assert model.model.config is model.config
    with pytest.raises((ValueError, ImportError)):  # what can't be had
        model.set_attn_implementation("no_such_attention")


def test_attention_choice_is_none_of_other_models() -> None:
    assert attention_choice(nn.Linear(1, 1)) is None
