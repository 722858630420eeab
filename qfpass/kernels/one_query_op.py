"""Attention of one query a head as an operator, for which Inductor is given a loop nest of ours.

Its own loops read a head's keys once a query of the group, and one after the other: half of what memory
gives. `one_query.cpp` reads them once, four side by side; see `one_query_template`.
"""

from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("one_query.cpp").read_text()
WIDEST_VECTOR = 16  # numbers; the loops take whole vectors of every processor's size


def fits(
    key: torch.Tensor, value: torch.Tensor, scales: tuple[torch.Tensor, torch.Tensor] | None = None
) -> bool:
    """Whether the loops take operands of this device, these dimensions, this dtype and layout."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
    whole = key.shape[-1] % WIDEST_VECTOR == 0 and value.shape[-1] % WIDEST_VECTOR == 0
    same = key.device.type == "cpu" and key.dtype == value.dtype
    dense = all(operand.stride(-1) == 1 for operand in (key, value, *(scales or ())))
    return same and whole and dense and key.dtype in dtypes


@torch.library.custom_op("qfpass::attend_one", mutates_args=())
def attend_one(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_scale: torch.Tensor | None,
    value_scale: torch.Tensor | None,
) -> torch.Tensor:
    """query [B, Hkv, G, D] float32, scaled; key [B, Hkv, Sk, D]; value [B, Hkv, Sk, Dv]; scales [B, Hkv, Sk].

    Returns out and, last, the log-sum-exp of the logits, [B, Hkv, G, Dv + 1] float32.
    """
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
    return query.new_empty(*query.shape[:3], value.shape[3] + 1)
