"""A score of one's own: `python examples/own_score.py` compiles a tiny random model with it.

It keeps the tokens whose value vectors are longest.
"""

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import qfpass


class LargeValues(qfpass.Score):
    """Keeps tokens whose value vector is long."""

    name = "large values"

    def __call__(self, keys: Tensor, values: Tensor, positions: Tensor, filters: Tensor | None) -> Tensor:
        """Norms [B, Hkv, S] of values [B, Hkv, S, Dv]."""
        return torch.linalg.vector_norm(values.float(), dim=-1)


def main() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=100, max_position_embeddings=256,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    compiled = qfpass.compile(model, budget=32, score=LargeValues(), backend="eager")
    session = compiled.session()
    compiled(torch.randint(100, (1, 200)), past_key_values=session)
    print(f"{session.tokens_seen} tokens read; the first layer's first head holds positions")
    print(session.positions(0)[0, 0].sort().values.tolist())


if __name__ == "__main__":
    main()
