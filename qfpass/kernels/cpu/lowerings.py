"""The lowerings by which Inductor compiles this package's operators to C++ loops."""

from collections.abc import Mapping
from typing import Any

import torch

from ...upstream.inductor import Lower, lower_to_own_loops
from ...upstream.vector_isa import has_vectors


def register() -> bool:
    """Let Inductor lower this package's operators to C++ loops; True if it does so from now on.

    It doesn't without vector instructions, or in a version of torch that can't. Inductor's own kernels do the
    work then.
    """
    return has_vectors() and lower_to_own_loops.failure is None and lower_to_own_loops(_lowerings)


def _lowerings() -> Mapping[Any, Lower]:
    """Each operator's lowering; imported here, since these modules import Inductor."""
    from .grouped_linear.lowering import lower_grouped_linears
    from .step_attention.lowering import lower_attend_one
    from .step_linear.lowering import lower_few_token_linears

    ours = torch.ops.qfpass
    return {
        ours.few_token_linears.default: lower_few_token_linears,
        ours.grouped_linears.default: lower_grouped_linears,
        ours.attend_one.default: lower_attend_one,
    }
