"""Factors of smoothing, read from what a model's keys are."""

from typing import Any

import torch
from tiny import FAMILIES, FORMS

from qfpass.attention.find import find_attentions
from qfpass.capture.export import capture
from qfpass.filters.read_smoothing import read_smoothing

CONTEXT = 200


def factors_of(model: torch.nn.Module) -> tuple[torch.Tensor, ...]:
    captured = capture(model)
    return read_smoothing(captured, find_attentions(captured, CONTEXT), CONTEXT)


@torch.no_grad()
def test_a_large_bias_of_keys_is_seen_in_both_channels_of_its_rotary_pair() -> None:
    model: Any = FAMILIES["qwen2"](head_dim=16)
    projection = model.model.layers[1].self_attn.k_proj
    projection.bias[2] = 500.0  # of the first head; its pair is channel 10
    plain, biased = factors_of(model)
    assert plain.shape == biased.shape == (2, 16) and plain.dtype == torch.float32
    first = biased[0].log2()
    assert int(first.argmax()) in (2, 10)
    assert first[[2, 10]].min() > first[[i for i in range(16) if i not in (2, 10)]].max()


@torch.no_grad()
def test_heads_last_and_windows_are_read_too() -> None:
    for family in ("gemma3", "gpt2", "bloom"):  # bloom's keys are transposed for us alone
        factors = factors_of((FAMILIES | FORMS)[family]())
        assert all(f.ndim == 2 and bool(f.isfinite().all()) for f in factors)
