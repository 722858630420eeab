"""Tiny configurations: shrunk by the names of fields, every kind of layer kept."""

import pytest
import torch
from transformers import CONFIG_MAPPING

from qfpass.tools.census.tiny import CONTEXT, WINDOW, tiny_config, tiny_model


def test_sizes_are_shrunk_and_the_rest_is_kept() -> None:
    config = tiny_config(CONFIG_MAPPING["llama"], {})
    usual = CONFIG_MAPPING["llama"]()
    assert (config.hidden_size, config.num_hidden_layers, config.max_position_embeddings) == (32, 2, CONTEXT)
    assert config.num_key_value_heads == config.num_attention_heads  # as by default
    assert (config.hidden_act, config.rms_norm_eps) == (usual.hidden_act, usual.rms_norm_eps)


def test_every_kind_of_layer_is_kept() -> None:
    config = tiny_config(CONFIG_MAPPING["gemma3_text"], {})
    assert set(config.layer_types) == {"sliding_attention", "full_attention"}
    assert config.num_hidden_layers == len(config.layer_types) == 2
    assert config.sliding_window == WINDOW


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
def test_models_are_small_and_seeded(family: str) -> None:
    config = tiny_config(CONFIG_MAPPING[family], {})
    model, twin = tiny_model(config), tiny_model(config)
    assert sum(p.numel() for p in model.parameters()) < 100_000
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_fixed_fields_are_taken() -> None:
    config = tiny_config(CONFIG_MAPPING["llama"], {"hidden_size": 64, "rope_parameters": {"rope_theta": 7.0}})
    assert config.hidden_size == 64
    assert config.rope_parameters["rope_theta"] == 7.0
