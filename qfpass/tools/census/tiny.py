"""Makes a tiny random model of any configuration class, by the names of its fields alone."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig

CONTEXT = 64  # tokens that a tiny model can place
WINDOW = 8  # tokens that its sliding layers see
WEIGHT_RANGE = 0.2  # wide enough that attention and logits differ clearly from token to token

_HEADS, _LAYERS = 4, 2
# A field of one of these names, where a configuration holds a number under it, takes this number.
_SIZES: dict[str, int] = {
    name: size
    for size, names in (
        (32, "hidden_size d_model n_embd emb_dim embedding_size embedding_dim input_embedding_size "
        "output_embedding_size word_embed_proj_dim attention_hidden_size out_hidden_size lru_width"),
        (48, "intermediate_size decoder_ffn_dim encoder_ffn_dim ffn_dim ffn_hidden_size d_ff dff dim_ff "
        "d_inner shared_intermediate_size intermediate_size_mlp feed_forward_size dense_intermediate_size"),
        (16, "moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size "
        "expert_ffn_hidden_size moe_shared_expert_intermediate_size kv_lora_rank q_lora_rank o_lora_rank "
        "hidden_size_per_layer_input laurel_rank mamba_d_state"),
        (12, "qk_head_dim"),
        (8, "head_dim d_kv d_head kv_channels dim_head linear_key_head_dim linear_value_head_dim v_head_dim "
        "qk_nope_head_dim swa_head_dim linear_head_dim index_head_dim attention_head_dim mamba_head_dim "
        "mamba_d_head mamba_headdim mamba_n_heads mamba_num_heads mamba_chunk_size chunk_size index_topk"),
        (4, "qk_rope_head_dim rotary_dim num_experts n_routed_experts num_local_experts moe_num_experts "
        "index_block_size"),
        (2, "num_experts_per_tok moe_topk moe_top_k moe_k num_experts_per_token index_topk_blocks"),
        (1, "n_group topk_group num_expert_group first_k_dense_replace num_dense_layers"),
        (WINDOW, "sliding_window attention_window_size sliding_window_size attention_chunk_size "
        "local_attention"),
        (CONTEXT, "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions "
        "model_max_length context_length original_max_position_embeddings max_source_positions"),
        (61, "vocab_size vocab_size_per_layer_input decoder_vocab_size"),
        (_HEADS, "num_attention_heads num_heads n_head n_heads decoder_attention_heads "
        "encoder_attention_heads num_decoder_attention_heads num_encoder_attention_heads "
        "swa_num_attention_heads"),
        (_LAYERS, "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers "
        "num_decoder_layers num_encoder_layers depth"),
    )
    for name in names.split()
}  # fmt: skip
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "kv_n_heads", "swa_num_key_value_heads")
_SPECIAL_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id")
# Some configuration classes leave these open and then don't work.
_ALWAYS_SET = {"head_dim", "num_experts_per_tok", "n_routed_experts", "is_decoder", *_KEY_VALUE_HEADS}


def tiny_config(config_class: type[PretrainedConfig], fixed: Mapping[str, Any]) -> PretrainedConfig:
    """A configuration of a few thousand parameters, with one layer of each kind that the default has.

    Args:
        fixed: values of fields that can't be guessed; a mapping for a nested configuration.
    """
    usual = config_class()
    small: dict[str, Any] = {}
    for name, value in vars(usual).items():
        if isinstance(value, PretrainedConfig):
            small[name] = tiny_config(type(value), fixed.get(name, {}))
        elif name in _ALWAYS_SET or _is_size(value):
            size = _size(usual, name, value)
            small |= {} if size is None else {name: size}
        elif name in _SPECIAL_TOKENS and isinstance(value, list):
            small[name] = [1]
    own = {n: v for n, v in fixed.items() if not isinstance(small.get(n), PretrainedConfig)}
    return config_class(**small | _one_layer_of_each_kind(usual, small | own) | own)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _size(usual: PretrainedConfig, name: str, value: Any) -> int | None:
    """The number for a field that is `value` by default; None leaves it."""
    if name == "is_decoder":
        return True
    if name in _KEY_VALUE_HEADS:
        return _key_value_heads(usual, value)
    if name in _SPECIAL_TOKENS:
        return 1
    if name == "head_dim" and value is not None and value == getattr(usual, "qk_rope_head_dim", None):
        name = "qk_rope_head_dim"  # what rotary embeddings are made for, not the size of a head
    return _SIZES.get(name)


def tiny_model(
    config: PretrainedConfig, seed: int = 0, models: Mapping[Any, Any] = MODEL_FOR_CAUSAL_LM_MAPPING
) -> nn.Module:
    """A model of `config` in float32 and eval mode, whose random weights all matter.

    `models`: transformers' classes of models by class of configuration.
    """
    torch.manual_seed(seed)
    model_class: Any = models[type(config)]
    parts = [config, *(part for part in vars(config).values() if isinstance(part, PretrainedConfig))]
    # Of a configuration of several models, the text decoder's; else the whole, for another family's model.
    own = next((part for part in parts if isinstance(part, model_class.config_class)), config)
    model = model_class(own).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=WEIGHT_RANGE)
            else:  # norms, biases and the like keep what they mean, but none is left at 0 or 1
                parameter.add_(torch.randn_like(parameter), alpha=WEIGHT_RANGE / 4)
    return model


def _key_value_heads(usual: PretrainedConfig, usual_number: int | None) -> int:
    """Grouped, multi-query or one a head, as the default is."""
    heads = next((v for n, v in vars(usual).items() if _SIZES.get(n) == _HEADS), usual_number)
    return _HEADS if usual_number in (None, heads) else min(usual_number, 2)


def _one_layer_of_each_kind(usual: PretrainedConfig, small: Mapping[str, Any]) -> dict[str, Any]:
    """The lists that say each layer's kind, cut to the shortest start that shows every kind, in order."""
    layers = getattr(usual, "num_hidden_layers", None)
    lists = {
        name: value
        for name, value in vars(usual).items()
        if isinstance(value, (list, tuple)) and len(set(map(str, value))) < len(value) == layers
    }
    if not lists:
        return {}
    kinds = list(zip(*lists.values(), strict=True))
    chosen = sorted({kinds.index(kind) for kind in kinds})
    chosen += range(len(chosen), _LAYERS)
    number = next(n for n in vars(usual) if n in small and _SIZES.get(n) == _LAYERS)
    cut = {name: [value[i] for i in chosen] for name, value in lists.items()}
    return {number: len(chosen), **cut}
