"""Products of a single token with weights, so that Inductor streams the weights once.

A decode step on a processor is little else than reading weights, and the library's matrix-vector product
reaches half of what memory gives. Written as multiply and sum, it becomes a loop of Inductor's own that
does better, takes the weights where they lie, and so is shared by layers as the rest of their code is.
"""

import torch
from torch import fx
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..kernels.once import computed_once
from .regions import Outlined

aten = torch.ops.aten


def stream_weights(outlined: Outlined) -> None:
    """Let every linear decide by its input's length; quantised weights are left to their own products."""
    for part in (outlined.body, outlined.head):
        if part is None or any(is_traceable_wrapper_subclass(p) for p in part.parameters()):
            continue
        for graph_module in part.modules():
            if isinstance(graph_module, fx.GraphModule):
                for node in graph_module.graph.nodes:
                    if node.target is aten.linear.default:
                        node.target = linear
                graph_module.recompile()


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [B, S, K], weight [N, K] -> [B, S, N]; summed in float32 if it is one token in all."""
    if x.dim() != 3 or x.shape[0] != 1 or x.shape[1] != 1:
        return aten.linear.default(x, weight, bias)
    # The loop over a narrow weight is held up by arithmetic: its input is widened before, not for every row.
    wide = x if x.dtype == torch.float32 else computed_once(x.float())
    out = (wide.unsqueeze(-2) * weight.float()).sum(-1).to(x.dtype)
    return out if bias is None else out + bias
