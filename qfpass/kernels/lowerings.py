"""Inductor's lowerings of our operators. Imports Inductor, so that only what lowers with it imports this."""

import torch
from torch._inductor.lowering import register_lowering

from .coded_linear_template import lower_coded_linear
from .one_query_template import lower_attend_one
from .one_token_template import lower_one_token_linears
from .vectors import has_vectors


def register() -> None:
    """Let Inductor lower the operators of this package so, whatever it has made of them before.

    A processor without vectors runs what our own loops do as the operators themselves.
    """
    if has_vectors():
        register_lowering(torch.ops.qfpass.coded_linear.default, type_promotion_kind=None)(lower_coded_linear)
        register_lowering(torch.ops.qfpass.one_token_linears.default, type_promotion_kind=None)(
            lower_one_token_linears
        )
        register_lowering(torch.ops.qfpass.attend_one.default, type_promotion_kind=None)(lower_attend_one)
