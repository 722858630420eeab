"""A decoder's graphs as packages that were compiled ahead of time."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import fx

from ..lowering.weight_guard import addresses_of, form_of, refuse_other_forms
from ..regions.packed_copy import PackedCopy
from ..upstream.aot_packages import load_package
from .programs import with_counts

Call = Callable[..., torch.Tensor]


class PackagedGraphs:
    """The packages of a folder as the callables of a decoder; see `lowering.decoder_graphs.DecoderGraphs`.

    Args:
        names: of the packages, such as `step-1` for calls of one row.
        tensors: every weight and constant, by `PACKAGE:NAME`, the names of the package and in it.
        shares: the number of different shares of slots among bounded layers.
        follows_length: see `DecoderGraphs`.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        tensors: Mapping[str, torch.Tensor],
        *,
        device: torch.device,
        longest: int,
        shares: int,
        follows_length: bool,
    ) -> None:
        self.longest, self._shares, self.follows_length = longest, shares, follows_length
        self.kinds, self.own_loops, self.why_not_piecewise = 0, True, None
        self.few = None
        self.modules: list[fx.GraphModule] = []
        self.packed: Sequence[PackedCopy] = ()
        self.weights: Sequence[torch.Tensor] = tuple(tensors.values())
        self._tensors = tensors
        self._packages = {name: load_package(folder / f"{name}.pt2", device) for name in names}
        self._forms = [form_of(weight) for weight in self.weights]
        self._addresses = self._read_weights()
        self.rows = tuple(int(name.rpartition("-")[2]) for name in self._packages if name.startswith("step-"))
        self.head: Call | None = partial(self._run, "head") if "head-1" in self._packages else None
        self.watch: Callable[..., Any] | None = partial(self._run, "watch")

    def chunk(self, ids: torch.Tensor, position: torch.Tensor, *inputs: Any) -> torch.Tensor:
        """Hidden values [B, S, E], or logits [B, S, V] without a head."""
        return self._run("chunk", ids, position, *with_counts(inputs, self._shares))

    def step(self, ids: torch.Tensor, position: torch.Tensor, *inputs: Any) -> torch.Tensor:
        """Logits [B, 1, V]."""
        counted = with_counts(inputs, self._shares)
        return self._run("step" if counted[1] is None else "uneven_step", ids, position, *counted)

    def _run(self, name: str, *inputs: Any) -> Any:
        if addresses_of(self.weights) != self._addresses:
            refuse_other_forms(self._forms, self.weights)
            self._addresses = self._read_weights()
        return self._packages[f"{name}-{len(inputs[0])}"](*inputs)

    def _read_weights(self) -> list[int]:
        """Give each package the weights where they are now; their addresses."""
        for name, package in self._packages.items():
            package.read_weights_from(
                {own: self._tensors[f"{name}:{own}"].detach() for own in package.weight_names}
            )
        return addresses_of(self.weights)
