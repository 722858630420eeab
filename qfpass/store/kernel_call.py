"""How a layer's attention is computed: the kernel, the form of the logits, biases and the learned sink."""

from dataclasses import dataclass
from typing import Any

import torch

from ..kernels.cpu.step_attention.attend import attend_step
from ..kernels.form import AttentionForm
from ..kernels.kernel import Kernel
from .int4_values import Int4ValueSlots
from .int8_slots import Int8Slots
from .store_kind import StoreKind


@dataclass(frozen=True)
class KernelCall:
    """How one layer's attention is computed.

    Attributes:
        kernel: takes any number of queries, and applies the form's soft cap itself.
        form: what the logits are.
        step: reads a store for one query, in whatever bits it is; None for `kernel` or `attend_step`.
        streams: Inductor compiles the calls made here, so a single query goes through `attend_step`.
        own_loops: whether `attend_step` may use this package's C++ loops.
    """

    kernel: Kernel
    form: AttentionForm
    step: Kernel | None = None
    streams: bool = False
    own_loops: bool = False

    @property
    def names(self) -> str:
        """The kernels' names, as reports show them."""
        return self.kernel.name if self.step is None else f"{self.kernel.name}, steps by {self.step.name}"

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        bias: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        **mask: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of queries over keys; `mask` is `causal` or `window`, without a bias.

        Row b sees the first lengths[b] keys that `bias` doesn't hide, by default all.

        Returns:
            out [B, Hq, Sq, Dv] and the logits' log-sum-exp [B, Hq, Sq] float32.
        """
        if query.shape[2] == 1 and not mask and (self.step or (self.streams and query.device.type == "cpu")):
            return self._attend_one(query, key, value, None, bias, lengths)
        bias = with_lengths(bias, lengths, key.shape[2])
        if bias is not None:
            mask["bias"] = bias
        return self.kernel.attend(query, key, value, scale=self.form.scale, **mask)

    def attend_slots(
        self,
        query: torch.Tensor,
        slots: StoreKind,
        bias: torch.Tensor | None,
        lengths: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over all slots that `bias` and `lengths` don't hide: (out, lse) as from `attend`."""
        reads_codes = query.shape[2] == 1 and (self.step or self.streams)
        if reads_codes and isinstance(slots, (Int8Slots, Int4ValueSlots)):
            scales = slots.key_scales, slots.value_scales
            return self._attend_one(query, slots.keys, slots.values, scales, bias, lengths)
        key, value = slots.dense(query.dtype)
        return self.attend(query, key, value, bias=bias, lengths=lengths)

    def _attend_one(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scales: tuple[torch.Tensor, torch.Tensor] | None,
        bias: torch.Tensor | None,
        lengths: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        scale = self.form.scale
        if self.step is not None:
            return self.step.attend(query, key, value, scale=scale, scales=scales, bias=bias, lengths=lengths)
        return attend_step(
            query, key, value, scale=scale, scales=scales, bias=with_lengths(bias, lengths, key.shape[2]),
            softcap=self.form.softcap, own_loops=self.own_loops,
        )  # fmt: skip


def with_lengths(bias: torch.Tensor | None, lengths: torch.Tensor | None, keys: int) -> torch.Tensor | None:
    """The bias, or none, that also hides all but the first lengths[b] keys of row b."""
    if lengths is None:
        return bias
    by_row = length_bias(lengths, keys)
    return by_row if bias is None else bias + by_row


def length_bias(lengths: torch.Tensor, keys: int) -> torch.Tensor:
    """A bias [B, 1, 1, keys] float32 that hides all but the first lengths[b] keys of row b."""
    slot = torch.arange(keys, device=lengths.device)
    return hiding_bias(slot >= lengths[:, None, None, None])


def hiding_bias(hidden: torch.Tensor) -> torch.Tensor:
    """A float32 bias: -inf where `hidden` is True, else 0."""
    return torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device).masked_fill(
        hidden, float("-inf")
    )


def weigh_with_sink(out: torch.Tensor, lse: torch.Tensor, sink: torch.Tensor | None) -> torch.Tensor:
    """The attention's output [B, Hq, S, Dv] scaled for a learned sink [Hq]; unchanged if `sink` is None.

    The sink is one more logit a head, whose value is zero. A softmax over keys and sink gives the keys
    exp(lse) / (exp(lse) + exp(sink)) of the weight.
    """
    if sink is None:
        return out
    share = torch.sigmoid(lse - sink.float()[:, None])
    return (out * share[..., None]).to(out.dtype)
