"""A session's stores: layers that keep keys alike lie side by side in one allocation."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from ..graph.rewrite import Rule, Site
from ..store.ring import Ring
from ..store.slots import AnySlots

Store = AnySlots | Ring


class Stack(NamedTuple):
    """The stores of the sites numbered `layers`, which have one rule; tensors [L, B, Hkv, C, ...]."""

    layers: tuple[int, ...]
    rule: Rule
    store: Store

    @property
    def flat(self) -> Store:
        """Views [L * B, Hkv, C, ...]: the layers' rows as rows of one batch, the first layer's first."""
        return type(self.store)(*(tensor.view(-1, *tensor.shape[2:]) for tensor in self.store))


class Stores(Sequence[Store]):
    """One store [B, Hkv, C, ...] a site, in graph order.

    A layer's tensors lie in its stack's memory, so that a few operations on a stack serve all its layers.

    Attributes:
        slots: of every bounded site by number, where its next step writes, [B, Hkv, 1]; see `aim`.
    """

    @torch.inference_mode(False)  # here and below: or a call outside of it couldn't write
    def __init__(self, stacks: Sequence[Stack] = ()) -> None:
        self.stacks = tuple(stacks)
        # By DLPack, for Dynamo asks of views of one tensor how they lie to each other, and compiles anew.
        layers = {
            layer: type(stack.store)(*map(torch.from_dlpack, parts))
            for stack in self.stacks
            for layer, *parts in zip(stack.layers, *(t.unbind(0) for t in stack.store), strict=True)
        }
        self._layers = tuple(layers[i] for i in range(len(layers)))
        bounded = [stack for stack in self.stacks if stack.rule.is_bounded]
        self._slots = [_slots_of(stack) for stack in bounded]
        self.slots = {
            layer: torch.from_dlpack(slot)
            for stack, of_stack in zip(bounded, self._slots, strict=True)
            for layer, slot in zip(stack.layers, of_stack.unbind(0), strict=True)
        }

    def aim(self, slots: Sequence[torch.Tensor]) -> None:
        """Let the next step write to these slots, [L * B, Hkv, 1] a bounded stack."""
        for mine, found in zip(self._slots, slots, strict=True):
            mine.copy_(found.view(mine.shape))

    @classmethod
    @torch.inference_mode(False)
    def empty(cls, sites: Sequence[Site], batch: int, dtype: torch.dtype, device: torch.device) -> "Stores":
        """Stores for `batch` rows, not cleared yet."""
        alike = defaultdict[tuple[Rule, tuple[int, int, int]], list[int]](list)
        for i, site in enumerate(sites):
            a = site.attention
            alike[site.rule, (a.kv_heads, a.head_dim, a.value_dim)].append(i)
        stacks = []
        for (rule, sizes), layers in alike.items():
            flat = rule.allocate(len(layers) * batch, *sizes, dtype, device)
            parted = type(flat)(*(tensor.unflatten(0, (len(layers), batch)) for tensor in flat))
            stacks.append(Stack(tuple(layers), rule, parted))
        return cls(stacks)

    @torch.inference_mode(False)
    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Stores":
        """`change` of every stack's tensors [L, B, Hkv, C, ...]."""
        return Stores([s._replace(store=type(s.store)(*map(change, s.store))) for s in self.stacks])

    def copy_(self, others: Sequence[Store]) -> None:
        """Take over the contents of other stores, of the same shapes and dtypes but on any device."""
        for mine, theirs in zip(self, others, strict=True):
            for tensor, other in zip(mine, theirs, strict=True):
                assert (tensor.shape, tensor.dtype) == (other.shape, other.dtype)
                tensor.copy_(other)

    def __getitem__(self, layer):  # type: ignore[no-untyped-def]  # an int or a slice
        return self._layers[layer]

    def __iter__(self) -> Iterator[Store]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


def _slots_of(stack: Stack) -> torch.Tensor:
    """Slots [L, B, Hkv, 1] of a stack.

    Beside each lies a number that nothing reads: what Inductor's code on a GPU reads begins at a multiple of
    16 bytes, or is copied there every time.
    """
    keys = stack.store.keys
    return torch.zeros(*keys.shape[:3], 2, dtype=torch.long, device=keys.device)[..., :1]
