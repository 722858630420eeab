"""How far logits may differ: by the rounding of a sum in another order, not by more."""

from collections.abc import Sequence

import torch
from torch import fx

from .graph.attention import Attention
from .graph.capture import Captured
from .graph.in_float32 import InFloat32

# Largest difference allowed, relative to the largest logit.
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
TRIALS = 8


def tolerance_of(dtype: torch.dtype) -> float:
    """Of logits that were computed in this dtype."""
    return TOLERANCE.get(dtype, 1e-1)


def relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest magnitude; NaN if either holds one."""
    return float(row_differences(actual[None], expected[None]))


def row_differences(actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The same of each row [B, ...] by itself, [B] float32 on the CPU."""
    actual, expected = (tensor.float().flatten(1) for tensor in (actual, expected))
    return ((actual - expected).abs().amax(1) / expected.abs().amax(1).clamp(min=1e-6)).cpu()


def amplified(
    captured: Captured, attentions: Sequence[Attention], ids: torch.Tensor, in_float32: bool = False
) -> float:
    """How far the original's logits move, relative to the largest, when its attentions move by rounding.

    The most of `TRIALS` readings: whether an expert is chosen by a last bit is a matter of chance.
    """
    inputs = ids, torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
    names = {attention.node.name for attention in attentions}
    moved, still = (_Moved(captured.module, which, not in_float32) for which in (names, set[str]()))
    expected = still(*inputs)
    return max(relative_difference(moved(*inputs), expected) for _ in range(TRIALS))


class _Moved(InFloat32):
    """Runs a graph, the outputs of some of its nodes changed by a few of their last bits."""

    def __init__(self, module: fx.GraphModule, names: set[str], as_it_is: bool) -> None:
        super().__init__(module, as_it_is)
        self._names = names
        self._generator = torch.Generator().manual_seed(0)

    def run_node(self, node: fx.Node) -> object:
        """The node's result, moved if it is one of those."""
        result = super().run_node(node)
        if node.name not in self._names:
            return result
        if isinstance(result, tuple):
            return (self._moved(result[0]), *result[1:])
        return self._moved(result)

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        by_chance = torch.rand(tensor.shape, generator=self._generator).to(tensor.device, tensor.dtype)
        return tensor * (1 + 4 * torch.finfo(tensor.dtype).eps * (2 * by_chance - 1))
