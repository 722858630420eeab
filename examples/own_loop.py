"""The pass by itself: `python examples/own_loop.py` finds the attentions of an export and runs it on stores.

For those who lower and run graphs themselves: nothing of `qfpass.compile` but the rewriting is used.
"""

import torch
from torch import nn
from torch.export import Dim
from transformers import LlamaConfig, LlamaForCausalLM

import qfpass
from qfpass.attention.find import Attention
from qfpass.store.scores import recency
from qfpass.store.slots import SlotRule

TOKENS, SLOTS, CHUNK = 200, 32, 16


class Logits(nn.Module):
    """A model of transformers as (input_ids [B, S], position_ids [B, S]) -> logits [B, S, V]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """The logits alone."""
        logits: torch.Tensor = self.model(input_ids, position_ids=position_ids, use_cache=False).logits
        return logits


def keep_newest(attention: Attention) -> SlotRule:
    """Every layer keeps its first four tokens and the newest."""
    return SlotRule(SLOTS, recent=SLOTS - 5, sinks=4, score=recency)


def main() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=100, max_position_embeddings=256,
    )  # fmt: skip
    model = Logits(LlamaForCausalLM(config).eval())
    ids = torch.randint(100, (2, TOKENS))
    positions = torch.arange(TOKENS).expand(2, -1)
    shape = {0: Dim.AUTO, 1: Dim.AUTO}
    program = torch.export.export(
        model, (ids[:, :11], positions[:, :11]), dynamic_shapes=(shape, shape), strict=False
    )

    attentions = qfpass.find(program, context_length=TOKENS)
    print(attentions)

    bounded = qfpass.rewrite(attentions, keep_newest)
    stores, seen = bounded.allocate(batch=2), 0
    for piece in ids.split(CHUNK, dim=1):
        logits = bounded.read(piece, stores, seen)
        seen += piece.shape[1]
    for _ in range(5):
        token = logits[:, -1:].argmax(-1)
        logits = bounded.read(token, stores, seen)
        seen += 1
    print(f"{seen} tokens read, {stores[0][0].shape[2]} slots a head")


if __name__ == "__main__":
    main()
