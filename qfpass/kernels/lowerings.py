"""Inductor's lowerings of our operators. Imports Inductor, so that only what lowers with it imports this."""

from typing import Any

import torch
from torch._inductor.ir import ConcatKernel, TensorBox
from torch._inductor.lowering import register_lowering

from .coded_linear_template import lower_coded_linear
from .one_query_template import lower_attend_one
from .vectors import has_vectors


def register() -> None:
    """Let Inductor lower the operators of this package so, whatever it has made of them before.

    A processor without vectors runs what our own loops do as the operators themselves.
    """
    register_lowering(torch.ops.qfpass.concatenate.default, type_promotion_kind=None)(_lower_concatenate)
    if has_vectors():
        register_lowering(torch.ops.qfpass.coded_linear.default, type_promotion_kind=None)(lower_coded_linear)
        register_lowering(torch.ops.qfpass.attend_one.default, type_promotion_kind=None)(lower_attend_one)


def _lower_concatenate(parts: list[Any]) -> Any:
    return TensorBox(ConcatKernel.create(parts, len(parts[0].get_size()) - 1))
