"""Replay calls that always run the same kernels on the same memory.

A small model's step is many short kernels, and launching them takes much of its time. On a GPU a CUDA graph
launches all of them at once; on a CPU they are recorded and called one after the other.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch

from ..sessions.stores import Stores
from .cpu_replay import RecordedKernels
from .cuda_replay import CudaGraph
from .weight_guard import addresses_of, are_plain

Call = Callable[..., Any]
CUDA_GRAPHS = "triton.cudagraphs"  # Inductor's option


class Replay(Protocol):
    """A recorded call that can be replayed; each replay overwrites the outputs of the one before.

    Attributes:
        is_replayable: whether the call can be replayed; if not, the caller makes the call as before.
        why_not: the reason why it can't be replayed; None if it can.
    """

    is_replayable: bool
    why_not: str | None

    def __init__(self, call: Call, inputs: Sequence[torch.Tensor]) -> None: ...

    def first(self) -> Any:
        """The outputs for the inputs that the call was recorded with."""

    def replay(self, inputs: Sequence[torch.Tensor]) -> Any:
        """The outputs for these inputs."""


class Replays:
    """The replays of a decoder, one for each session's stores and kind of call.

    Args:
        weights: the tensors that calls read in place; replays are dropped once one has another address.
        options: the user's options of Inductor; `triton.cudagraphs=False` turns replays off on a GPU.
        wanted: whether to replay at all.
        on_several: whether the calls run on several devices, which no replay takes.

    Calls are never replayed on devices other than CPU and CUDA, or if weights are quantised, since their
    addresses don't show where all their data is. Those calls are just made.
    """

    def __init__(
        self,
        device: torch.device,
        weights: Sequence[torch.Tensor],
        options: Mapping[str, Any],
        wanted: bool = True,
        on_several: bool = False,
    ) -> None:
        self._weights = weights
        never = "the model lies on several devices" if wanted and on_several else None
        self._why_never = never or _why_never(device, weights, options, wanted)
        self._why_not = dict[str, str | None]()
        kinds: dict[str, type[Replay]] = {"cpu": RecordedKernels, "cuda": CudaGraph}
        self._make = None if self._why_never else kinds[device.type]
        self._by_stores = WeakKeyDictionary[Stores, _StoresReplays]()

    def run(
        self,
        kind: str,
        prepare: Callable[[], Call],
        stores: Stores,
        *inputs: torch.Tensor,
        variant: int | None = None,
    ) -> Any:
        """The outputs of prepare()(*inputs), a call of this `kind` on `stores`; the next one overwrites them.

        `prepare` gives the same call whenever stores, kind and `variant` are the same.

        The first call of a kind on these stores is just made: it may compile, and stores that live for one
        step aren't worth a recording. The second is recorded, and later ones are replayed.

        Raises:
            QFPassError: something in the call can't be captured.
        """
        if self._make is None:
            return prepare()(*inputs)
        addresses = addresses_of(self._weights)
        known = self._by_stores.get(stores)
        if known is None or known.addresses != addresses:
            known = self._by_stores[stores] = _StoresReplays(addresses)
        if (kind, variant) not in known.replays:
            known.replays[kind, variant] = None
            return prepare()(*inputs)
        replay = known.replays[kind, variant]
        if replay is None:
            replay = known.replays[kind, variant] = self._make(prepare(), inputs)
            self._why_not[kind] = replay.why_not
            return replay.first()
        return replay.replay(inputs) if replay.is_replayable else prepare()(*inputs)

    def why_not(self, kind: str) -> str | None:
        """The reason why calls of this kind aren't replayed; None if the last recording can be replayed."""
        return self._why_never or self._why_not.get(kind, "none on full stores has come twice yet")

    def __len__(self) -> int:
        replays = [replay for known in self._by_stores.values() for replay in known.replays.values()]
        return sum(replay is not None and replay.is_replayable for replay in replays)


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


class _StoresReplays:
    """The replays on one session's stores, by kind and variant; None for what has been called once."""

    def __init__(self, addresses: Sequence[int]) -> None:
        self.addresses, self.replays = addresses, dict[tuple[str, int | None], Replay | None]()
