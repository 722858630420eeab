"""Tiny decoders with seeded random weights: ten Hugging Face families and two written by hand."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    GptOssConfig,
    Llama4TextConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

MAX_POSITIONS = 256
# Wide enough that a random model's logits and attention differ clearly from token to token.
INITIALIZER_RANGE = 0.2


def _from_config(config: PretrainedConfig, seed: int, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    # Special tokens are of no meaning here, and an end of text would cut generation short.
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def _family(config_class: type[PretrainedConfig], **fixed: Any) -> Callable[..., nn.Module]:
    """A builder for families whose configurations share Llama's names."""

    def build(
        layers: int = 2,
        heads: int = 4,
        kv_heads: int = 2,
        head_dim: int = 8,
        window: int | None = None,
        vocab: int = 61,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> nn.Module:
        sizes: dict[str, Any] = {
            "hidden_size": heads * head_dim,
            "intermediate_size": 2 * heads * head_dim,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "head_dim": head_dim,
            "vocab_size": vocab,
            "max_position_embeddings": MAX_POSITIONS,
            "initializer_range": INITIALIZER_RANGE,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        }
        if config_class is Gemma3TextConfig:
            sizes["query_pre_attn_scalar"] = head_dim
            kinds = ("sliding_attention", "full_attention")
            sizes["layer_types"] = [kinds[layer % 2] for layer in range(layers)]
        if config_class in (Gemma3TextConfig, MistralConfig):
            sizes["sliding_window"] = window or 12
        return _from_config(config_class(**(sizes | fixed)), seed, dtype)

    return build


def _with_biases(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A builder of models with random biases, which transformers leaves at zero."""

    def build_biased(**settings: Any) -> nn.Module:
        model = build(**settings)
        generator = torch.Generator().manual_seed(1)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data.normal_(0, INITIALIZER_RANGE, generator=generator)
        return model

    return build_biased


def _gpt(config_class: type[PretrainedConfig], **fixed: Any) -> Callable[..., nn.Module]:
    """A builder for families with GPT-2's names; no grouped heads, no window: those are ignored."""

    def build(
        layers: int = 2,
        heads: int = 4,
        head_dim: int = 8,
        vocab: int = 61,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        **_: Any,
    ) -> nn.Module:
        sizes: dict[str, Any] = {
            "n_layer": layers,
            "n_head": heads,
            "n_embd": heads * head_dim,
            "vocab_size": vocab,
            "n_positions": MAX_POSITIONS,
            "initializer_range": INITIALIZER_RANGE,
            "bos_token_id": None,
            "eos_token_id": None,
        }
        return _from_config(config_class(**(sizes | fixed)), seed, dtype)

    return build


def _gpt_oss(**settings: Any) -> nn.Module:
    """With experts that torch 2.11 can trace in float32: its grouped products it traces in bfloat16 alone."""
    model: Any = _family(GptOssConfig, num_local_experts=4, num_experts_per_tok=2, sliding_window=12)(
        **settings
    )
    model.set_experts_implementation("batched_mm")
    return model


FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "llama": _family(LlamaConfig),
    "mistral": _family(MistralConfig, hidden_size=24),
    "qwen2": _with_biases(_family(Qwen2Config)),
    "qwen3": _family(Qwen3Config, hidden_size=24),
    "gemma3": _family(Gemma3TextConfig),
    "phi3": _family(Phi3Config),
    "olmo2": _family(Olmo2Config),
    "gpt2": _gpt(GPT2Config),
    "gptj": _gpt(GPTJConfig, rotary_dim=4),  # a softmax between two matmuls
    "gpt_neox": _family(GPTNeoXConfig),  # it has no grouped heads: kv_heads is ignored
}

# Attention in rarer forms: soft caps, learned sinks, biases by distance, chunks; windows are of 12 tokens.
FORMS: dict[str, Callable[..., nn.Module]] = {
    "gemma2": _family(Gemma2Config, query_pre_attn_scalar=8, sliding_window=12),
    "gpt_oss": _gpt_oss,
    "bloom": _gpt(BloomConfig, hidden_size=32),
    "llama4": _family(
        Llama4TextConfig, num_local_experts=2, attention_chunk_size=12, intermediate_size_mlp=64
    ),
}


def rotate(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotary positions [B, S] on x [B, H, S, D], in halves."""
    half = x.shape[-1] // 2
    frequency = 100.0 ** (-torch.arange(half, device=x.device) / half)
    angle = positions[:, None, :, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class PlainLayer(nn.Module):
    """Attention and a gated MLP; `heads_of` and `after_attention` let a test attend in its own way."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.before_attention, self.before_mlp = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.value = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.gate, self.up = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def heads_of(
        self, hidden: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Query [B, Hq, S, D], key and value [B, Hkv, S, D], positions applied."""
        normed = self.before_attention(hidden)
        query, key, value = (
            part(normed).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        return rotate(query, positions), rotate(key, positions), value

    def after_attention(self, hidden: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """hidden [B, S, E] and attended [B, Hq, S, D] -> the layer's output [B, S, E]."""
        hidden = hidden + self.out(attended.transpose(1, 2).flatten(2))
        normed = self.before_mlp(hidden)
        return hidden + self.down(F.silu(self.gate(normed)) * self.up(normed))


class PlainDecoder(nn.Module):
    """A decoder of plain modules: (input_ids [B, S], position_ids [B, S]) -> logits [B, S, V]."""

    def __init__(
        self,
        layers: int = 2,
        heads: int = 4,
        kv_heads: int = 2,
        head_dim: int = 8,
        vocab: int = 61,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        width = 24
        self.tokens = nn.Embedding(vocab, width)
        self.layers = nn.ModuleList(PlainLayer(width, heads, kv_heads, head_dim) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, vocab, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2 and not name.startswith("tokens"):
                nn.init.normal_(parameter, std=INITIALIZER_RANGE)
        self.to(dtype).eval()

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """Causal attention over the whole text."""
        return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """See the class."""
        hidden = self.tokens(input_ids)
        for layer in self.layers:
            assert isinstance(layer, PlainLayer)
            query, key, value = layer.heads_of(hidden, position_ids)
            hidden = layer.after_attention(hidden, self.attend(query, key, value, position_ids))
        return self.head(self.norm(hidden))


class WindowDecoder(PlainDecoder):
    """A `PlainDecoder` whose every layer sees the last `window` tokens, by a mask made from positions."""

    def __init__(self, window: int = 12, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.window = window

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        """Causal attention over the last `window` tokens."""
        distance = positions[:, None, :, None] - positions[:, None, None, :]
        seen = (distance >= 0) & (distance < self.window)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True)


class MixedDecoder(WindowDecoder):
    """A `WindowDecoder` whose odd layers see the whole text."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """See `PlainDecoder`."""
        hidden = self.tokens(input_ids)
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, PlainLayer)
            attend = super().attend if index % 2 == 0 else super(WindowDecoder, self).attend
            hidden = layer.after_attention(
                hidden, attend(*layer.heads_of(hidden, position_ids), position_ids)
            )
        return self.head(self.norm(hidden))
