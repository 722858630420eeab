"""A decoder's graphs by what they take and give: ids or embeddings, logits, hidden states or both."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import fx

from ..errors import InputError
from ..lowering.decoder_graphs import DecoderGraphs
from ..sessions.tokens import Ends


class OtherEnds(Protocol):
    """Makes graphs of a decoder that work on the same stores and take or give something else."""

    def graphs(self, ends: Ends) -> DecoderGraphs:
        """The graphs with these ends."""

    def hidden_numbers(self, asked: bool | int | Sequence[int]) -> tuple[int, ...]:
        """The numbers of the hidden states that are asked for."""

    def split(self, values: torch.Tensor, hidden: Sequence[int]) -> list[torch.Tensor]:
        """What graphs gave side by side: these hidden states, then the model's own output, if any."""

    def require_width(self, embeddings: torch.Tensor) -> None:
        """Raise InputError unless embeddings [B, S, E] have the size and dtype of the model's own."""


class GraphsByEnds:
    """The graphs of a decoder that work on the same stores, by their ends.

    `plain` take ids and give logits. `others` makes further ones when they are asked for; None for graphs
    from an export, for one stage of a pipeline, and for a model on several devices.
    """

    def __init__(
        self,
        plain: DecoderGraphs,
        others: OtherEnds | None,
        is_stage: bool = False,
        on_several: bool = False,
    ) -> None:
        self._others, self._made = others, {Ends(): plain}
        self._is_stage, self._on_several = is_stage, on_several

    @property
    def others(self) -> OtherEnds:
        """Makes graphs that take embeddings or give hidden states.

        Raises:
            InputError: the graphs were exported, are a stage's, or lie on several devices.
        """
        if self._is_stage:
            raise InputError(
                "a model whose layers are split over processes (pp_size) takes ids and gives logits, no "
                "embeddings and no hidden states: load it whole, or with tp_plan."
            )
        if self._on_several:
            raise InputError(
                "a model on several devices takes ids and gives logits, no embeddings and no hidden states: "
                "load it on one device."
            )
        if self._others is None:
            raise InputError(
                "a decoder from an export takes ids and gives logits, nothing else: compile the model."
            )
        return self._others

    def prepare(self, ends: Ends) -> None:
        """Make the graphs of these ends, unless they are there; they are compiled when they are first called.

        Raises:
            InputError: the model has no such ends, or its graphs were exported.
        """
        if ends not in self._made:
            made = self.others.graphs(ends)
            self._made.setdefault(ends, made)

    def __getitem__(self, ends: Ends) -> DecoderGraphs:
        """The graphs of these ends, which are prepared."""
        return self._made[ends]

    @property
    def modules(self) -> list[fx.GraphModule]:
        """The graph modules that Dynamo compiles, of all graphs made so far."""
        return [module for graphs in self._made.values() for module in graphs.modules]
