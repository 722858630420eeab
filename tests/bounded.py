"""Tiny models with small stores, without filters and without Inductor."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import qfpass
from qfpass.store.ring_attention import RingAttention
from qfpass.store.slot_attention import SlotAttention

CONTEXT = 48


def compiled(model: nn.Module, **settings: Any) -> nn.Module:
    """Bounded to 16 slots, without filters and without Inductor."""
    chosen = {"budget": 16, "chunk": 8, "score": "recency", "context_length": CONTEXT}
    return qfpass.compile(model, backend="eager", **(chosen | settings))


def run_plainly(model: nn.Module) -> nn.Module:
    """A compiled model whose graphs run as plain Python: fast to begin, and any part of them can fail."""
    decoder = model.qfpass_decoder
    graphs, body, head = decoder.graphs, decoder.graphs.outlined.body, decoder.graphs.outlined.head
    graphs.chunk = graphs.step = body
    if head is not None:
        graphs.head, graphs.step = head, lambda *inputs: head(body(*inputs))
    return model


def graphs_of_one_batch(model: nn.Module) -> int:
    """Graphs that texts of any length compile: a chunk's, a step's, the head's and the watch's.

    Piece by piece, of chunk and step what comes before the layers and each kind of layer is one; the step has
    a head too.
    """
    outlined = model.qfpass_decoder.graphs.outlined
    if outlined.head is None:
        return 3
    return 5 + 2 * outlined.kinds if "piecewise" not in model.qfpass_decoder.unused_optimisations else 4


def llama(implementation: str = "sdpa") -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=53, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT,
        attn_implementation=implementation,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


class Interrupt(BaseException):
    """Like a KeyboardInterrupt, no Exception."""


@contextmanager
def failing_attentions(model: nn.Module) -> Iterator[Callable[[int], None]]:
    """A context with fail(n), which lets the n-th attention from now fail, after it has written."""
    left = [0]

    def count(module: nn.Module, args: Any, out: torch.Tensor) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Interrupt

    handles = [
        module.register_forward_hook(count)
        for module in model.qfpass_decoder.graphs.outlined.body.modules()
        if isinstance(module, (RingAttention, SlotAttention))
    ]
    try:
        yield lambda attentions: left.__setitem__(0, attentions)
    finally:
        for handle in handles:
            handle.remove()
