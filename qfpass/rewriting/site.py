"""A site: one attention, the rule that keeps its keys and the kernel that reads them."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..attention.find import Attention
from ..store.kernel_call import KernelCall
from ..store.ring import RingRule
from ..store.slots import SlotRule

Rule = SlotRule | RingRule


@dataclass(frozen=True)
class Site:
    """One attention of a decoder, the rule of its layer's store, and the kernel call that reads the store."""

    attention: Attention
    rule: Rule
    kernel_call: KernelCall

    @property
    def is_ring(self) -> bool:
        """Whether the layer keeps exactly the tokens of its window or chunk."""
        return isinstance(self.rule, RingRule)


def bounded_shares(sites: Sequence[Site]) -> list[float]:
    """The distinct shares of slots among the bounded layers, ascending."""
    return sorted({site.rule.share for site in sites if site.rule.is_bounded})
