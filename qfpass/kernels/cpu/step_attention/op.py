"""Attention of one query a head as an operator, which Inductor has loops for.

Inductor's own loops read a head's keys again for each query of the group, one key after the other, at half of
the memory's bandwidth. `loops.cpp` reads each key from memory once, and uses it for four queries at a time.
"""

from pathlib import Path

import torch

from ...int4 import dequantize_int4

SOURCE = Path(__file__).with_name("loops.cpp").read_text()
WIDEST_VECTOR = 16  # float32 numbers; the loops read whole vectors, whatever the processor's width


def fits(
    key: torch.Tensor, value: torch.Tensor, scales: tuple[torch.Tensor, torch.Tensor] | None = None
) -> bool:
    """Whether the loops take operands of this device, dtype, layout and these dimensions."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
    whole = key.shape[-1] % WIDEST_VECTOR == 0 and value.shape[-1] % WIDEST_VECTOR == 0
    same = key.dtype == value.dtype or (key.dtype, value.dtype) == (torch.int8, torch.uint8)
    dense = all(operand.stride(-1) == 1 for operand in (key, value, *(scales or ())))
    return key.device.type == "cpu" and same and whole and dense and key.dtype in dtypes


@torch.library.custom_op("qfpass::attend_one", mutates_args=())
def attend_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_scale: torch.Tensor | None,
    value_scale: torch.Tensor | None,
) -> torch.Tensor:
    """The attention's output with the logits' log-sum-exp as last number, [B, Hkv, G, Dv + 1] float32.

    The operands are query [B, Hkv, G, D] float32, already scaled; key [B, Hkv, Sk, D]; value
    [B, Hkv, Sk, Dv]; and the scales [B, Hkv, Sk] of keys and of values, or None. A value uint8 is in four
    bits, as `kernels.int4` packs it: [B, Hkv, Sk, Dv / 2], with scales [B, Hkv, Sk, Dv / 32].
    """
    if value.dtype == torch.uint8:
        assert value_scale is not None, "packed values have scales"
        value, value_scale = dequantize_int4(value, value_scale, torch.float32), None
    logits = query @ key.float().mT
    if key_scale is not None:
        logits = logits * key_scale[:, :, None]
    weights = logits.softmax(-1)
    if value_scale is not None:
        weights = weights * value_scale[:, :, None]
    return torch.cat([weights @ value.float(), logits.logsumexp(-1, keepdim=True)], -1)


@attend_one.register_fake
def _fake(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_scale: torch.Tensor | None,
    value_scale: torch.Tensor | None,
) -> torch.Tensor:
    numbers = value.shape[3] * (2 if value.dtype == torch.uint8 else 1)
    return query.new_empty(*query.shape[:3], numbers + 1)
