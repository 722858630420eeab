"""Inductor's lowerings of our operators. Imports Inductor, so that only what lowers with it imports this."""

from typing import Any

import torch
from torch._inductor.ir import ConcatKernel, TensorBox
from torch._inductor.lowering import lowerings, register_lowering

from .one_query_template import lower_attend_one


def register() -> None:
    """Let Inductor lower the operators of this package so; once is enough."""
    ours = torch.ops.qfpass
    for operator, lower in (
        (ours.attend_one.default, lower_attend_one),
        (ours.concatenate.default, _lower_concatenate),
    ):
        if operator not in lowerings:
            register_lowering(operator, type_promotion_kind=None)(lower)


def _lower_concatenate(parts: list[Any]) -> Any:
    return TensorBox(ConcatKernel.create(parts, len(parts[0].get_size()) - 1))
