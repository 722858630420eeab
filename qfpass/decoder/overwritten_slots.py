"""Find what a step is about to overwrite, one slot per head, in all layers at once before the step runs."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import fx, nn

from ..config import Config
from ..lowering.lower import lower
from ..lowering.replays import Replays
from ..sessions.rows import Row
from ..sessions.stores import Stack, Store, Stores
from ..sizes import Sizes
from ..store.layer import Rule
from ..store.ring import Ring, RingRule
from ..store.slots import Protection, slot_of_position, slot_to_replace
from ..store.store_kind import fields_of, with_tensors

Found = Sequence[Sequence[torch.Tensor]]
Find = Callable[..., Found]
"""See `finder_graph`."""


class SlotContents(NamedTuple):
    """A slot [L * B, Hkv, 1] per head of a stack, and each tensor's contents there, [L * B, Hkv, 1, ...]."""

    slot: torch.Tensor
    tensors: tuple[torch.Tensor, ...]


class Overwritten:
    """A copy of what a step will overwrite in a session, by which the step can be undone.

    Attributes:
        position: the positions of the tokens that the step reads, [B, 1] int64.
    """

    def __init__(self, stacks: Sequence[Stack], held: Sequence[SlotContents], position: torch.Tensor) -> None:
        self._stacks, self._held, self._batch = stacks, held, position.shape[0]
        self.position = position

    @property
    def slots(self) -> list[torch.Tensor]:
        """The slots that the step writes to, [L * B, Hkv, 1] for each bounded stack."""
        return [h.slot for h, stack in zip(self._held, self._stacks, strict=True) if stack.rule.is_bounded]

    def with_contents_now(self) -> "Overwritten":
        """The same slots with what they hold now."""
        held = [
            SlotContents(h.slot, tuple(_gather_slot(tensor, h.slot) for tensor in stack.flat))
            for h, stack in zip(self._held, self._stacks, strict=True)
        ]
        return Overwritten(self._stacks, held, self.position)

    def restore(self, rows: Sequence[int]) -> None:
        """Write the contents before the step back into the stores of these rows, in place."""
        if not rows:
            return
        chosen = torch.tensor(rows, dtype=torch.long, device=self.position.device)
        for stack, held in zip(self._stacks, self._held, strict=True):
            first = torch.arange(len(stack.layers), device=chosen.device) * self._batch
            row = (first[:, None] + chosen).flatten()
            head = torch.arange(held.slot.shape[1], device=chosen.device)[:, None]
            slot = held.slot[row]
            for tensor, before in zip(stack.flat, held.tensors, strict=True):
                tensor[row[:, None, None], head, slot] = before[row]


def slots_taken(
    stores: Stores, rows: Sequence[Row], sizes: Sequence[Sizes], device: torch.device
) -> list[torch.Tensor]:
    """The slots that the rows' next tokens take, [L * B, Hkv, 1] for each bounded stack; found eagerly."""
    position, recent = positions_of(rows, device), column([own.recent for own in sizes], device)
    return [
        _slot_taken(stack.rule, stack.flat, recent.repeat(layers, 1), position.repeat(layers, 1))
        for stack in stores.stacks
        if stack.rule.is_bounded
        for layers in (len(stack.layers),)
    ]


def positions_of(rows: Sequence[Row], device: torch.device) -> torch.Tensor:
    """The position of each row's next token, [B, 1] int64."""
    return column([row.position for row in rows], device)


def column(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """One number a row, [B, 1] int64; the caller doesn't wait for a GPU."""
    is_gpu = device.type == "cuda"
    held = torch.tensor(numbers, device="cpu", pin_memory=is_gpu)
    return held.to(device, non_blocking=is_gpu)[:, None]


class OverwriteFinder:
    """Finds what a step will overwrite, by one graph instead of a dozen small operations per stack.

    Args:
        find: that graph, compiled already; None compiles it at the first call.

    Attributes:
        module: the graph that Dynamo compiles, if any. Only Inductor compiles it, else it runs eagerly.
    """

    def __init__(self, config: Config, replays: Replays, find: Find | None = None) -> None:
        self._config, self._replays, self._find = config, replays, find
        self.module: fx.GraphModule | None = None

    def __call__(self, stores: Stores, rows: Sequence[Row], sizes: Sequence[Sizes]) -> Overwritten:
        """The slots that the next token of every row of `stores` takes, and their contents now."""
        if self._find is None:
            self.module = finder_graph(stores.stacks)
            is_lowered = self._config.backend == "inductor"
            self._find = lower(self.module, self._config) if is_lowered else self.module.forward
        device = next(iter(stores[0])).device
        position, recent = positions_of(rows, device), column([own.recent for own in sizes], device)
        found = self._replays.run("watch", partial(self._prepare, stores), stores, position, recent)
        held = [SlotContents(slot, tuple(contents)) for slot, *contents in found]
        return Overwritten(stores.stacks, held, position)

    def _prepare(self, stores: Stores) -> Callable[[torch.Tensor, torch.Tensor], Found]:
        tensors = [t for stack in stores.stacks for t in stack.flat]
        find = self._find
        assert find is not None
        return lambda position, recent: find(position, recent, *tensors)


class _FindInStack(nn.Module):
    """A module that finds what a step will overwrite in one stack."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.rule, self.store_type, self.layers = stack.rule, type(stack.store), len(stack.layers)

    def forward(
        self, position: torch.Tensor, recent: torch.Tensor, *tensors: torch.Tensor
    ) -> list[torch.Tensor]:
        """The slots, then the contents, from position and recent [B, 1], tensors [L * B, Hkv, C, ...]."""
        store = with_tensors(self.store_type, tensors)
        slot = _slot_taken(self.rule, store, recent.repeat(self.layers, 1), position.repeat(self.layers, 1))
        return [slot, *(_gather_slot(tensor, slot) for tensor in tensors)]


def finder_graph(stacks: Sequence[Stack]) -> fx.GraphModule:
    """The graph (position [B, 1], recent [B, 1], *tensors of every stack) -> a list for each stack.

    Each list has the slots [L * B, Hkv, 1], then each tensor's contents there, as in `SlotContents`.
    """
    finders = nn.ModuleDict({f"stack_{i}": _FindInStack(stack) for i, stack in enumerate(stacks)})
    graph = fx.Graph()
    position, recent = graph.placeholder("position"), graph.placeholder("recent")
    found = []
    for name, stack in zip(finders, stacks, strict=True):
        tensors = [graph.placeholder(f"{field}_{name}") for field in fields_of(type(stack.store))]
        found.append(graph.call_module(name, (position, recent, *tensors)))
    graph.output(found)
    return fx.GraphModule(finders, graph)


def _slot_taken(rule: Rule, store: Store, recent: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """The slots [B, Hkv, 1] of a store that the tokens at position [B, 1] take; recent is [B, 1] too."""
    if isinstance(store, Ring):
        return (position % rule.slots)[:, None].expand(-1, store.keys.shape[1], -1)
    assert not isinstance(rule, RingRule)
    if not rule.is_bounded:
        return slot_of_position(store.positions, position)
    protection = Protection(recent[:, None], rule.sinks)
    return slot_to_replace(store.scores, store.positions, protection, position)


def _gather_slot(tensor: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
    """The contents [B, Hkv, 1, ...] of a tensor [B, Hkv, C, ...] at slot [B, Hkv, 1]."""
    wide = slot if tensor.dim() == 3 else slot[..., None].expand(-1, -1, -1, tensor.shape[3])
    return tensor.gather(2, wide)
