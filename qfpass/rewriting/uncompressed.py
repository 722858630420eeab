"""The rewritten graph without compression, run eagerly: for the proof and self-written calibration text."""

from collections.abc import Sequence

import torch
from torch import fx

from ..attention.find import Attention
from ..graph.captured import Captured
from ..graph.in_float32 import InFloat32
from ..graph.kept_weights import KeepsWeights, is_quantised_weight
from ..kernels.choose import choose_kernel, choose_step_kernel
from ..kernels.kernel import Kernel
from ..store.kernel_call import KernelCall
from ..store.ring import RingRule
from ..store.scores import recency
from ..store.slots import SlotRule, Slots
from ..store.store_kind import StoreKind
from .on_stores import OnStores
from .site import Rule, Site


class Uncompressed:
    """A rewritten decoder that evicts nothing from texts of up to `capacity` tokens, in `batch` rows.

    If `in_float32`, a model in half precision is computed in float32.
    """

    def __init__(
        self,
        captured: Captured,
        attentions: Sequence[Attention],
        capacity: int,
        batch: int,
        in_float32: bool = False,
        kernel: Kernel | None = None,
        store_type: type[StoreKind] = Slots,
        smoothing: Sequence[torch.Tensor] | None = None,
    ) -> None:
        self._batch, self._capacity, self.in_float32 = batch, capacity, in_float32
        self._dtype = torch.float32 if in_float32 else captured.dtype
        kernel_calls = [kernel_call_of(captured, a, self._dtype, kernel) for a in attentions]
        factors = smoothing or (None,) * len(attentions)
        self.sites = [
            Site(a, keep_all(a, capacity, store_type), call, None if a.span.reach else smooth)
            for a, call, smooth in zip(attentions, kernel_calls, factors, strict=True)
        ]
        self._on_stores = OnStores(captured, self.sites)
        self.module = self._on_stores.module
        self._run: KeepsWeights | fx.GraphModule = self.module
        if in_float32:
            self._run = InFloat32(self.module)
        elif any(map(is_quantised_weight, self.module.graph.nodes)):
            self._run = KeepsWeights(self.module)
        self.restart()

    def restart(self) -> None:
        """Allocate empty stores and start again at position 0."""
        self.tokens_seen = 0
        self._stores = self._on_stores.allocate(self._batch, self._dtype)

    @torch.no_grad()
    def read(self, ids: torch.Tensor, call_end: int = 0) -> torch.Tensor:
        """Read ids [B, S] and return logits [B, S, V]; the call's last token has position `call_end`."""
        return self._run(*self.inputs(ids, call_end))

    def inputs(self, ids: torch.Tensor, call_end: int = 0) -> tuple[torch.Tensor | None, ...]:
        """The module's arguments for reading ids [B, S] next; counts these tokens as seen."""
        seen, length = self.tokens_seen, ids.shape[1]
        assert seen + length <= self._capacity, f"{seen} + {length} tokens for {self._capacity} slots"
        self.tokens_seen = seen + length
        return self._on_stores.inputs(ids, self._stores, seen, call_end=call_end)


def kernel_call_of(
    captured: Captured,
    attention: Attention,
    dtype: torch.dtype | None = None,
    kernel: Kernel | None = None,
) -> KernelCall:
    """The kernel call for an attention of this model, in `dtype` (by default the model's).

    `kernel` is one of the caller's own, for every device.
    """
    sizes, form = (attention.head_dim, attention.value_dim), attention.form
    wanted = (captured.device, dtype or captured.dtype, *sizes, form, kernel)
    return KernelCall(choose_kernel(*wanted), form, choose_step_kernel(*wanted))


def keep_all(attention: Attention, capacity: int, store_type: type[StoreKind] = Slots) -> Rule:
    """A rule that evicts nothing from texts of up to `capacity` tokens."""
    span = attention.span
    if span.reach is not None:
        return RingRule(span.reach, chunked=span.chunk is not None)
    return SlotRule(capacity, recent=1, sinks=0, score=recency, is_bounded=False, store_type=store_type)
