"""A site: one attention of a graph, the rule that keeps its keys and the kernel that reads them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from ..attention.find import Attention
from ..store.kernel_call import KernelCall
from ..store.layer import Layer, Rule


@dataclass(frozen=True)
class Site:
    """One attention of a graph, the rule of its layer's store, and the kernel call that reads the store.

    `smoothing` are factors [Hkv, D] of its keys, see `store.smoothing`; None for keys as they are.
    `smoothing_digest` is of those of all heads, also where a process has a part of them.
    """

    attention: Attention
    rule: Rule
    kernel_call: KernelCall
    smoothing: torch.Tensor | None = field(default=None, compare=False)
    smoothing_digest: str = ""

    @property
    def layer(self) -> Layer:
        """What remains of the site in a compiled decoder."""
        a = self.attention
        return Layer(
            a.index, a.name, str(a.span), a.query_heads, a.kv_heads, a.head_dim, a.value_dim, self.rule,
            self.kernel_call.names, self.smoothing_digest, a.device,
        )  # fmt: skip

    @property
    def is_ring(self) -> bool:
        """Whether the layer keeps exactly the tokens of its window or chunk."""
        return self.layer.is_ring


def layers_of(sites: Sequence[Site]) -> list[Layer]:
    """The layer of each site."""
    return [site.layer for site in sites]
