"""A session's stores: layers with the same rule and sizes lie side by side in one allocation, a stack."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from ..store.kv_form import KVForm
from ..store.layer import Layer, Rule
from ..store.ring import Ring
from ..store.store_kind import StoreKind, with_tensors

Store = StoreKind | Ring


class Stack(NamedTuple):
    """The stores of the attentions with indices `layers`, all of one rule; tensors [L, B, Hkv, C, ...]."""

    layers: tuple[int, ...]
    rule: Rule
    store: Store

    @property
    def device(self) -> torch.device:
        """Where the stores lie."""
        return next(iter(self.store)).device

    @property
    def flat(self) -> Store:
        """Views [L * B, Hkv, C, ...]: the layers' rows as one batch, the first layer's rows first."""
        return with_tensors(type(self.store), (tensor.view(-1, *tensor.shape[2:]) for tensor in self.store))


class Stores(Sequence[Store]):
    """The stores [B, Hkv, C, ...] of all attentions, in graph order.

    A layer's tensors are part of its stack's memory, so that one operation on a stack serves all its layers.

    Attributes:
        write_slots: for each bounded attention, by index: the slots [B, Hkv, 1] int64 to write next;
            `set_write_slots` sets them.
    """

    # Here and below: tensors made in inference mode could not be written to outside of it.
    @torch.inference_mode(False)
    def __init__(self, stacks: Sequence[Stack] = ()) -> None:
        self.stacks = tuple(stacks)
        # Through DLPack a layer's tensors have storages of their own. Dynamo guards on how views of one
        # tensor overlap, and would recompile where that changes.
        layers = {
            layer: with_tensors(type(stack.store), map(torch.from_dlpack, parts))
            for stack in self.stacks
            for layer, *parts in zip(stack.layers, *(t.unbind(0) for t in stack.store), strict=True)
        }
        self._layers = tuple(layers[i] for i in range(len(layers)))
        bounded = [stack for stack in self.stacks if stack.rule.is_bounded]
        self._slots = [_slots_of(stack) for stack in bounded]
        self.write_slots = {
            layer: torch.from_dlpack(slot)
            for stack, of_stack in zip(bounded, self._slots, strict=True)
            for layer, slot in zip(stack.layers, of_stack.unbind(0), strict=True)
        }

    def set_write_slots(self, slots: Sequence[torch.Tensor]) -> None:
        """Set the slots that the next step writes to, [L * B, Hkv, 1] for each bounded stack."""
        for mine, found in zip(self._slots, slots, strict=True):
            mine.copy_(found.view(mine.shape))

    @classmethod
    @torch.inference_mode(False)
    def empty(cls, layers: Sequence[Layer], batch: int, dtype: torch.dtype, device: torch.device) -> "Stores":
        """Stores for `batch` rows, not yet cleared; on `device` where a layer names no other."""
        groups = defaultdict[tuple[Rule, KVForm], list[int]](list)
        for i, layer in enumerate(layers):
            groups[layer.rule, KVForm.of(layer, dtype, layer.device or device)].append(i)
        stacks = []
        for (rule, form), numbers in groups.items():
            flat = rule.allocate(len(numbers) * batch, form)
            stacked = with_tensors(
                type(flat), (tensor.unflatten(0, (len(numbers), batch)) for tensor in flat)
            )
            stacks.append(Stack(tuple(numbers), rule, stacked))
        return cls(stacks)

    @torch.inference_mode(False)
    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> "Stores":
        """Stores whose tensors are `change(tensor)` of each stack's tensors [L, B, Hkv, C, ...]."""
        return Stores(
            [s._replace(store=with_tensors(type(s.store), map(change, s.store))) for s in self.stacks]
        )

    def row(self, row: int) -> "Stores":
        """Views [1, Hkv, C, ...] of one row of every store."""
        return self.map(lambda tensor: tensor[:, row : row + 1])

    def copy_(self, others: Sequence[Store]) -> None:
        """Copy the contents of other stores, of the same shapes and dtypes and on any device, in place."""
        if isinstance(others, Stores):  # stack by stack, which is a few operations for all layers
            pairs = zip([s.store for s in self.stacks], [s.store for s in others.stacks], strict=True)
        else:
            pairs = zip(self, others, strict=True)
        for mine, theirs in pairs:
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
    """A tensor of slots [L, B, Hkv, 1] int64 for a stack, all 0.

    Its memory has one unused number after each slot, so that every layer's part begins at a multiple of 16
    bytes: Inductor's code on a GPU copies inputs that don't, in every call.
    """
    held = next(iter(stack.store))
    return torch.zeros(*held.shape[:3], 2, dtype=torch.long, device=held.device)[..., :1]
