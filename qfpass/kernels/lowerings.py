"""Inductor's lowerings of our operators."""

from collections.abc import Mapping
from typing import Any

import torch

from ..upstream.inductor import Lower, lower_to_own_loops
from ..upstream.vector_isa import has_vectors


def register() -> bool:
    """Let Inductor lower the operators of this package to loops of our own; whether it does from now on.

    A processor without vectors, or a version of torch that can't do this, runs what the operators are for in
    Inductor's own kernels.
    """
    return has_vectors() and lower_to_own_loops.failure is None and lower_to_own_loops(_lowerings)


def _lowerings() -> Mapping[Any, Lower]:
    """By operator. They import Inductor."""
    from .coded_linear_template import lower_coded_linear
    from .one_query_template import lower_attend_one
    from .one_token_template import lower_one_token_linears

    ours = torch.ops.qfpass
    return {
        ours.coded_linear.default: lower_coded_linear,
        ours.one_token_linears.default: lower_one_token_linears,
        ours.attend_one.default: lower_attend_one,
    }
