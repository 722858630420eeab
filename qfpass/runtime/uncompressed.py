"""The rewritten graph at no compression, run eagerly: what the proof compares and self-written text uses."""

from collections.abc import Sequence

import torch

from ..graph.attention import Attention
from ..graph.capture import Captured
from ..graph.in_float32 import InFloat32
from ..graph.rewrite import Rule, Site, rewrite
from ..kernels import choose
from ..store.reading import Reading
from ..store.ring import RingRule
from ..store.slots import SlotRule


class Uncompressed:
    """A decoder that keeps every key of up to `capacity` tokens, for `batch` rows.

    If `in_float32`, one in half precision is computed without its rounding.
    """

    def __init__(
        self,
        captured: Captured,
        attentions: Sequence[Attention],
        capacity: int,
        batch: int,
        in_float32: bool = False,
    ) -> None:
        self._device, self._batch, self._capacity = captured.device, batch, capacity
        self._dtype = torch.float32 if in_float32 else captured.dtype
        readings = [reading_of(captured, a, self._dtype) for a in attentions]
        self.sites = [
            Site(a, _keep_all(a, capacity), reading) for a, reading in zip(attentions, readings, strict=True)
        ]
        self.module = rewrite(captured, self.sites)
        self.in_float32 = in_float32
        self._run = InFloat32(self.module) if in_float32 else self.module
        self.restart()

    def restart(self) -> None:
        """Forget everything read."""
        self.tokens_seen = 0
        self._stores = [
            tensor
            for site in self.sites
            for tensor in site.rule.allocate(
                self._batch,
                site.attention.kv_heads,
                site.attention.head_dim,
                site.attention.value_dim,
                self._dtype,
                self._device,
            )
        ]

    @torch.no_grad()
    def read(self, ids: torch.Tensor, call_end: int = 0) -> torch.Tensor:
        """Read ids [B, S], of a call whose last token has the position `call_end`; their logits [B, S, V]."""
        return self._run(*self.inputs(ids, call_end))

    def inputs(self, ids: torch.Tensor, call_end: int = 0) -> tuple[torch.Tensor | None, ...]:
        """The module's arguments for reading ids [B, S] next; counts them as seen."""
        seen, length = self.tokens_seen, ids.shape[1]
        assert seen + length <= self._capacity, f"{seen} + {length} tokens for {self._capacity} slots"
        self.tokens_seen = seen + length
        position = torch.arange(seen, seen + length, device=self._device).expand(len(ids), -1)
        visible = torch.empty(seen + 1 if length == 1 else seen, device=self._device)
        end = torch.tensor(call_end, device=self._device)
        return (ids, position, visible, None, None, end, *self._stores)


def reading_of(captured: Captured, attention: Attention, dtype: torch.dtype | None = None) -> Reading:
    """How an attention of this model reads its keys, in the model's dtype or another."""
    kernel = choose(
        captured.device, dtype or captured.dtype, attention.head_dim, attention.value_dim, attention.softcap
    )
    return Reading(kernel, attention.scale, attention.slopes)


def _keep_all(attention: Attention, capacity: int) -> Rule:
    span = attention.span
    if span.reach is not None:
        return RingRule(span.reach, chunked=span.chunk is not None)
    return SlotRule(capacity, recent=1, sinks=0, score="recency", is_bounded=False)
