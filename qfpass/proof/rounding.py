"""How far logits may differ: as much as sums in another order round differently, not more."""

from collections.abc import Sequence

import torch
from torch import fx

from ..attention.find import Attention
from ..graph.captured import Captured
from ..graph.in_float32 import InFloat32

# The largest difference allowed, relative to the largest logit.
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
TRIALS = 8  # readings with attentions changed at random


def tolerance_of(dtype: torch.dtype) -> float:
    """The largest relative difference allowed for logits computed in this dtype."""
    return TOLERANCE.get(dtype, 1e-1)


def relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the largest magnitude expected; NaN if either tensor holds one."""
    return float(row_differences(actual[None], expected[None]))


def row_differences(actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The relative difference of each row of two tensors [B, ...], as [B] float32 on the CPU."""
    actual, expected = (tensor.float().flatten(1) for tensor in (actual, expected))
    return ((actual - expected).abs().amax(1) / expected.abs().amax(1).clamp(min=1e-6)).cpu()


def amplified_rounding(
    captured: Captured, attentions: Sequence[Attention], ids: torch.Tensor, in_float32: bool = False
) -> float:
    """The relative difference of the original's logits when its attentions change in their last bits.

    It is the largest of `TRIALS` readings, since it is chance whether a last bit changes the choice of an
    expert.
    """
    inputs = ids, torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
    names = {attention.node.name for attention in attentions}
    changed, unchanged = (_Perturbed(captured.module, which, not in_float32) for which in (names, set[str]()))
    expected = unchanged(*inputs)
    return max(relative_difference(changed(*inputs), expected) for _ in range(TRIALS))


class _Perturbed(InFloat32):
    """Runs a graph and changes the outputs of some nodes, by name, in a few of their last bits."""

    def __init__(self, module: fx.GraphModule, names: set[str], as_it_is: bool) -> None:
        super().__init__(module, as_it_is, most=0)
        self._names = names
        self._generator = torch.Generator().manual_seed(0)

    def run_node(self, node: fx.Node) -> object:
        """The node's result, changed if the node is one of those."""
        result = super().run_node(node)
        if node.name not in self._names:
            return result
        if isinstance(result, tuple):
            return (self._perturbed(result[0]), *result[1:])
        return self._perturbed(result)

    def _perturbed(self, tensor: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(tensor.shape, generator=self._generator).to(tensor.device, tensor.dtype)
        return tensor * (1 + 4 * torch.finfo(tensor.dtype).eps * (2 * noise - 1))
