"""Calls that are always the same kernels on the same memory, replayed.

A small model's step is many short kernels, and calling them takes a good part of the time: on a GPU a CUDA
graph launches them at once, on a processor they are recorded and called with nothing between.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch

from .cuda_graph import CudaGraph
from .recording import Recorded
from .stores import Stores
from .weights import addresses_of, are_plain

Call = Callable[..., Any]
CUDA_GRAPHS = "triton.cudagraphs"  # an option of Inductor


class Replay(Protocol):
    """A call that can be made again; what comes back is overwritten by the next.

    Attributes:
        is_whole: whether the call can be made so. If not it is made as it was.
        why_not: None if it can.
    """

    is_whole: bool
    why_not: str | None

    def __init__(self, call: Call, inputs: Sequence[torch.Tensor]) -> None: ...

    def first(self) -> Any:
        """What the call gives the first time."""

    def replay(self, inputs: Sequence[torch.Tensor]) -> Any:
        """The call on these inputs."""


class Replays:
    """A replay for each kind of call on a session's stores that is always the same kernels.

    `weights` are those that calls read where they lie: one that has moved makes the replays void. There are
    replays of Inductor's code only, if they are wanted, for weights that addresses tell apart, and on a GPU
    unless Inductor's own option says no; elsewhere calls are just made.

    """

    def __init__(
        self,
        device: torch.device,
        weights: Sequence[torch.Tensor],
        options: Mapping[str, Any],
        wanted: bool = True,
    ) -> None:
        self._weights = weights
        self._why_never = _why_never(device, weights, options, wanted)
        self._why_not = dict[str, str | None]()
        kinds: dict[str, type[Replay]] = {"cpu": Recorded, "cuda": CudaGraph}
        self._make = None if self._why_never else kinds[device.type]
        self._of_stores = WeakKeyDictionary[Stores, _OfStores]()

    def run(self, kind: str, prepare: Callable[[], Call], stores: Stores, *inputs: torch.Tensor) -> Any:
        """prepare()(*inputs), which works on `stores`: made the first time, replayed from the third on.

        The first call compiles what isn't compiled yet, and stores that live for one step aren't worth more.
        What comes back is overwritten by the next call of its kind.

        Raises:
            QFPassError: something in the call can't be captured.
        """
        if self._make is None:
            return prepare()(*inputs)
        addresses = addresses_of(self._weights)
        known = self._of_stores.get(stores)
        if known is None or known.addresses != addresses:
            known = self._of_stores[stores] = _OfStores(addresses)
        if kind not in known.replays:
            known.replays[kind] = None
            return prepare()(*inputs)
        replay = known.replays[kind]
        if replay is None:
            replay = known.replays[kind] = self._make(prepare(), inputs)
            self._why_not[kind] = replay.why_not
            return replay.first()
        return replay.replay(inputs) if replay.is_whole else prepare()(*inputs)

    def why_not(self, kind: str) -> str | None:
        """Why calls of a kind aren't replayed, None if the last that could be was."""
        return self._why_never or self._why_not.get(kind, "none on full stores has come twice yet")

    def __len__(self) -> int:
        replays = [replay for known in self._of_stores.values() for replay in known.replays.values()]
        return sum(replay is not None and replay.is_whole for replay in replays)


def _why_never(
    device: torch.device, weights: Sequence[torch.Tensor], options: Mapping[str, Any], wanted: bool
) -> str | None:
    if not wanted:
        return "it is turned off"
    if device.type not in ("cpu", "cuda"):
        return f"there are no replays for {device.type}"
    if device.type == "cuda" and not options.get(CUDA_GRAPHS, True):
        return f"{CUDA_GRAPHS} is turned off"
    return None if are_plain(weights) else "weights are quantised, and may move without a sign"


class _OfStores:
    """The replays on one session's stores, by kind; None for one that has been called once."""

    def __init__(self, addresses: Sequence[int]) -> None:
        self.addresses, self.replays = addresses, dict[str, Replay | None]()
