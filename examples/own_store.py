"""A store of one's own: `python examples/own_store.py` compiles a tiny random model with it.

Its slots hold eight bits of floating point, so four times as many tokens as float32 fit in the same bytes.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

import qfpass

SMALL = torch.float8_e4m3fn


class Float8Slots(NamedTuple):
    """keys [B, Hkv, C, D] and values [B, Hkv, C, Dv] in float8, as bytes; then what every kind holds."""

    keys: Tensor
    values: Tensor
    scores: Tensor
    positions: Tensor

    @classmethod
    def of(cls, keys: Tensor, values: Tensor, scores: Tensor, positions: Tensor) -> "Float8Slots":
        """Slots that hold these keys and values."""
        key_bytes, value_bytes = (x.clamp(-448, 448).to(SMALL).view(torch.uint8) for x in (keys, values))
        return cls(key_bytes, value_bytes, scores, positions)

    def dense(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values as attention reads them."""
        return self.keys.view(SMALL).to(dtype), self.values.view(SMALL).to(dtype)


def main() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=100, max_position_embeddings=256,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    compiled = qfpass.compile(model, ratio=8, score="recency", store=Float8Slots, backend="eager")
    session = compiled.session()
    compiled(torch.randint(100, (1, 200)), past_key_values=session)
    told = qfpass.report(compiled)
    held = told.sites[0].stored
    print(f"{session.slots} slots a head in {held}, {session.kv_nbytes} bytes of keys and values")


if __name__ == "__main__":
    main()
