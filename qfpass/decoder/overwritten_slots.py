"""Find what a step is about to overwrite, one slot per head, in all layers at once before the step runs."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

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

if TYPE_CHECKING:
    from ..sessions.session import Session


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

    def restore(self, rows: Sequence[int]) -> None:
        """Write the contents before the step back into the stores of these rows, in place."""
        for stack, held in zip(self._stacks, self._held, strict=True):
            layers = range(len(stack.layers))
            own = [layer * self._batch + row for layer in layers for row in rows]
            row = torch.tensor(own, device=held.slot.device)
            head = torch.arange(held.slot.shape[1], device=row.device)[None, :, None]
            for tensor, before in zip(stack.flat, held.tensors, strict=True):
                tensor[row[:, None, None], head, held.slot[row]] = before[row]


def slots_taken(
    stores: Stores, rows: Sequence[Row], sizes: Sizes, device: torch.device
) -> list[torch.Tensor]:
    """The slots that the rows' next tokens take, [L * B, Hkv, 1] for each bounded stack; found eagerly."""
    position, recent = positions_of(rows, device), torch.tensor(sizes.recent, device=device)
    return [
        _slot_taken(stack.rule, stack.flat, recent, position.repeat(len(stack.layers), 1))
        for stack in stores.stacks
        if stack.rule.is_bounded
    ]


def positions_of(rows: Sequence[Row], device: torch.device) -> torch.Tensor:
    """The position of each row's next token, [B, 1] int64; the caller doesn't wait for a GPU."""
    is_gpu = device.type == "cuda"
    positions = torch.tensor([[row.position] for row in rows], device="cpu", pin_memory=is_gpu)
    return positions.to(device, non_blocking=is_gpu)


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

    def __call__(self, session: "Session") -> Overwritten:
        """The slots that the next token of every row of `session` takes, and their contents now."""
        stores = session.stores
        if self._find is None:
            self.module = finder_graph(stores.stacks)
            is_lowered = self._config.backend == "inductor"
            self._find = lower(self.module, self._config) if is_lowered else self.module.forward
        position = positions_of(session.rows, session.device)
        found = self._replays.run("watch", partial(self._prepare, session), stores, position)
        held = [SlotContents(slot, tuple(contents)) for slot, *contents in found]
        return Overwritten(stores.stacks, held, position)

    def _prepare(self, session: "Session") -> Callable[[torch.Tensor], Found]:
        tensors = [t for stack in session.stores.stacks for t in stack.flat]
        recent = torch.tensor(session.sizes.recent, device=session.device)
        find = self._find
        assert find is not None
        return lambda position: find(position, recent, *tensors)


class _FindInStack(nn.Module):
    """A module that finds what a step will overwrite in one stack."""

    def __init__(self, stack: Stack) -> None:
        super().__init__()
        self.rule, self.store_type, self.layers = stack.rule, type(stack.store), len(stack.layers)

    def forward(
        self, position: torch.Tensor, recent: torch.Tensor, *tensors: torch.Tensor
    ) -> list[torch.Tensor]:
        """The slots, then the contents, from position [B, 1], recent [] and tensors [L * B, Hkv, C, ...]."""
        store = with_tensors(self.store_type, tensors)
        slot = _slot_taken(self.rule, store, recent, position.repeat(self.layers, 1))
        return [slot, *(_gather_slot(tensor, slot) for tensor in tensors)]


def finder_graph(stacks: Sequence[Stack]) -> fx.GraphModule:
    """The graph (position [B, 1], recent [], *tensors of every stack) -> a list for each stack.

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
    """The slots [B, Hkv, 1] of a store that the tokens at position [B, 1] take."""
    if isinstance(store, Ring):
        return (position % rule.slots)[:, None].expand(-1, store.keys.shape[1], -1)
    assert not isinstance(rule, RingRule)
    if not rule.is_bounded:
        return slot_of_position(store.positions, position)
    return slot_to_replace(store.scores, store.positions, Protection(recent, rule.sinks), position)


def _gather_slot(tensor: torch.Tensor, slot: torch.Tensor) -> torch.Tensor:
    """The contents [B, Hkv, 1, ...] of a tensor [B, Hkv, C, ...] at slot [B, Hkv, 1]."""
    wide = slot if tensor.dim() == 3 else slot[..., None].expand(-1, -1, -1, tensor.shape[3])
    return tensor.gather(2, wide)
