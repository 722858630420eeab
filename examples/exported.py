"""Compile ahead of time, and run without compiling: `python examples/exported.py`.

The folder that is written would be loaded by another process, on the same kind of machine.
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import qfpass

PROMPT, NEW = 60, 20


def main() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=100, max_position_embeddings=256, initializer_range=0.2,
        eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(1, 100, (1, PROMPT))
    compiled: Any = qfpass.compile(model, budget=32, score="recency")
    expected = compiled.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    with tempfile.TemporaryDirectory() as folder:
        compiled.export(Path(folder) / "exported")
        loaded: Any = qfpass.load(Path(folder) / "exported")
        actual = loaded.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    print(f"the loaded decoder writes the same {NEW} tokens: {torch.equal(actual, expected)}")


if __name__ == "__main__":
    main()
