"""Find what a step is about to overwrite, one slot per head, in all layers at once before the step runs."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import fx, nn

from ..config import Config
from ..graph.devices import HandOvers
from ..lowering.lower import lower
from ..lowering.replays import Replays
from ..sessions.overwritten import Overwritten, SlotContents, contents_at, slots_taken
from ..sessions.rows import Row
from ..sessions.stores import Stack, Stores
from ..sizes import Sizes
from ..store.store_kind import fields_of, with_tensors

Found = Sequence[Sequence[torch.Tensor]]
Find = Callable[..., Found]
"""See `finder_graph`."""


def slots_of_next(
    stores: Stores, rows: Sequence[Row], sizes: Sequence[Sizes], device: torch.device
) -> list[torch.Tensor]:
    """The slots that the rows' next tokens take, [L * B, Hkv, 1] for each bounded stack; found eagerly."""
    position, recent = positions_of(rows, device), column([own.recent for own in sizes], device)
    return [
        slots_taken(
            stack.rule, stack.flat, recent.to(held).repeat(layers, 1), position.to(held).repeat(layers, 1)
        )
        for stack in stores.stacks
        if stack.rule.is_bounded
        for layers, held in ((len(stack.layers), stack.device),)
    ]


def positions_of(rows: Sequence[Row], device: torch.device) -> torch.Tensor:
    """The position of each row's next token, [B, 1] int64."""
    return column([row.position for row in rows], device)


def column(numbers: Sequence[int], device: torch.device) -> torch.Tensor:
    """One number a row, [B, 1] int64; the caller doesn't wait for a GPU."""
    is_gpu = device.type == "cuda"
    # No view: Dynamo would compile anew for a copy, which isn't one.
    held = torch.tensor([[number] for number in numbers], device="cpu", pin_memory=is_gpu)
    return held.to(device, non_blocking=is_gpu)


class OverwriteFinder:
    """Finds what a step will overwrite, by one graph instead of a dozen small operations per stack.

    Args:
        find: that graph, compiled ahead of time for layers side by side, as they lie in a session and a whole
            pool; None compiles it at the first call.

    Attributes:
        module: the graph that Dynamo compiles, if any. Only Inductor compiles it, else it runs eagerly.
    """

    def __init__(self, config: Config, replays: Replays, find: Find | None = None) -> None:
        self._config, self._replays, self._find = config, replays, find
        self._is_package = find is not None
        self._plain: fx.GraphModule | None = None
        self.module: fx.GraphModule | None = None

    def __call__(self, stores: Stores, rows: Sequence[Row], sizes: Sequence[Sizes]) -> Overwritten:
        """The slots that the next token of every row of `stores` takes, and their contents now."""
        if self._find is None:
            self.module = finder_graph(stores.stacks)
            is_lowered = self._config.backend == "inductor"
            self._find = lower(self.module, self._config) if is_lowered else self.module.forward
        device = stores.stacks[0].device
        position, recent = positions_of(rows, device), column([own.recent for own in sizes], device)
        found = self._replays.run("watch", partial(self._prepare, stores), stores, position, recent)
        held = []
        for stack, (slot, *contents) in zip(stores.stacks, found, strict=True):
            layers = (len(stack.layers), -1)
            held.append(
                SlotContents(slot.unflatten(0, layers), tuple(c.unflatten(0, layers) for c in contents))
            )
        return Overwritten(tuple(range(len(rows))), position, tuple(held))

    def _prepare(self, stores: Stores) -> Callable[[torch.Tensor, torch.Tensor], Found]:
        tensors = [t for stack in stores.stacks for t in stack.flat]
        find = self._find
        if self._is_package and not all(tensor.is_contiguous() for tensor in tensors):
            # Layers of a pool's row lie apart. A package takes strides for granted: it would read other rows.
            self._plain = self._plain or finder_graph(stores.stacks)
            find = self._plain.forward
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
        slot = slots_taken(self.rule, store, recent.repeat(self.layers, 1), position.repeat(self.layers, 1))
        return [slot, *(contents_at(tensor, slot) for tensor in tensors)]


def finder_graph(stacks: Sequence[Stack]) -> fx.GraphModule:
    """The graph (position [B, 1], recent [B, 1], *tensors of every stack) -> a list for each stack.

    Each list has the slots [L * B, Hkv, 1], then each tensor's contents there, [L * B, Hkv, 1, ...].
    """
    finders = nn.ModuleDict({f"stack_{i}": _FindInStack(stack) for i, stack in enumerate(stacks)})
    graph = fx.Graph()
    position, recent = graph.placeholder("position"), graph.placeholder("recent")
    found = []
    hand_over = HandOvers(graph, stacks[0].device)
    held = {
        name: [graph.placeholder(f"{field}_{name}") for field in fields_of(type(stack.store))]
        for name, stack in zip(finders, stacks, strict=True)
    }
    for (name, tensors), stack in zip(held.items(), stacks, strict=True):
        at = [hand_over(node, stack.device) for node in (position, recent)]
        found.append(graph.call_module(name, (*at, *tensors)))
    graph.output(found)
    return fx.GraphModule(finders, graph)
