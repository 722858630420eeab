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
        streams: Inductor compiles the calls made here, so a single query goes through `attend_step`.
        own_loops: whether `attend_step` may use this package's C++ loops.
    """

    kernel: Kernel
    form: AttentionForm
    streams: bool = False
    own_loops: bool = False

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **mask: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention of queries over keys; `mask` is `causal`, `window` or `bias`.

        Returns:
            out [B, Hq, Sq, Dv] and the logits' log-sum-exp [B, Hq, Sq] float32.
        """
        if self.streams and query.shape[2] == 1 and query.device.type == "cpu" and mask.keys() <= {"bias"}:
            return self._attend_one(query, key, value, None, mask.get("bias"))
        return self.kernel.attend(query, key, value, scale=self.form.scale, **mask)

    def attend_slots(
        self, query: torch.Tensor, slots: StoreKind, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over all slots that `bias` doesn't hide: (out, lse) as from `attend`."""
        if self.streams and query.shape[2] == 1 and isinstance(slots, (Int8Slots, Int4ValueSlots)):
            scales = slots.key_scales, slots.value_scales
            return self._attend_one(query, slots.keys, slots.values, scales, bias)
        key, value = slots.dense(query.dtype)
        return self.attend(query, key, value, bias=bias)

    def _attend_one(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scales: tuple[torch.Tensor, torch.Tensor] | None,
        bias: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return attend_step(
            query, key, value, scale=self.form.scale, scales=scales, bias=bias, softcap=self.form.softcap,
            own_loops=self.own_loops,
        )  # fmt: skip


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
