"""Tiny models with small stores, without filters and without Inductor."""

from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import qfpass

CONTEXT = 48


def compiled(model: nn.Module, **settings: Any) -> nn.Module:
    """Bounded to 16 slots, without filters and without Inductor."""
    chosen = {"budget": 16, "chunk": 8, "score": "recency", "context_length": CONTEXT}
    return qfpass.compile(model, backend="eager", **(chosen | settings))


def run_plainly(model: nn.Module) -> nn.Module:
    """A compiled model whose graphs run as plain Python: fast to begin, and any part of them can fail."""
    decoder = model.qfpass_decoder
    decoder._chunk, decoder._step = (decoder._modules[name].forward for name in ("chunk", "step"))
    if decoder._head is not None:
        decoder._head = decoder._modules["head"].forward
    return model


def llama(implementation: str = "sdpa") -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=53, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT,
        attn_implementation=implementation,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()
