"""How a layer's queries read keys: the kernel, the scale, and what is added to the logits."""

from dataclasses import dataclass
from typing import Any

import torch

from ..kernels import Kernel, one_query
from .slots import AnySlots


@dataclass(frozen=True)
class Reading:
    """A layer's logits: scale * <query, key>, soft-capped by the kernel if it was chosen for that.

    `slopes`, one number a query head, add slope * (key position - query position): attention with linear
    biases (Press et al. 2021, arXiv 2108.12409), whose slopes are positive. `streams` says that Inductor
    compiles what is called here, so that a single query has loops of its own, and `own_loops` that these may
    be ours; see `one_query`.
    """

    kernel: Kernel
    scale: float
    slopes: tuple[float, ...] | None = None
    streams: bool = False
    own_loops: bool = False

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **form: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The kernel's attention, (out, lse)."""
        if self.streams and query.shape[2] == 1 and query.device.type == "cpu" and form.keys() <= {"bias"}:
            return self._attend_one(query, key, value, None, form.get("bias"))
        return self.kernel.attend(query, key, value, scale=self.scale, **form)

    def attend_slots(
        self, query: torch.Tensor, slots: AnySlots, bias: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention over a store all of whose slots are filled, (out, lse)."""
        if self.streams and query.shape[2] == 1 and slots.scales is not None:
            return self._attend_one(query, slots.keys, slots.values, slots.scales, bias)
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
        return one_query.attend(
            query, key, value, scale=self.scale, scales=scales, bias=bias, softcap=self.kernel.softcap,
            own_loops=self.own_loops,
        )  # fmt: skip


def distance_bias(
    query_position: torch.Tensor, key_position: torch.Tensor, slopes: torch.Tensor
) -> torch.Tensor:
    """Positions [B, Sq] and [B, 1 or Hkv, Sk], slopes [Hq] -> what is added, [B, Hq, Sq, Sk] float32."""
    distance = key_position[:, :, None, :] - query_position[:, None, :, None]
    group = len(slopes) // distance.shape[1]
    return distance.repeat_interleave(group, dim=1) * slopes[:, None, None]


def length_bias(lengths: torch.Tensor, keys: int) -> torch.Tensor:
    """[B, 1, 1, keys] float32 that shows row b its first lengths[b] keys alone."""
    place = torch.arange(keys, device=lengths.device)
    return hiding(place >= lengths[:, None, None, None])


def hiding(hidden: torch.Tensor) -> torch.Tensor:
    """A bias from a mask: -inf where True, float32."""
    return torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device).masked_fill(
        hidden, float("-inf")
    )


def weigh_with_sink(out: torch.Tensor, lse: torch.Tensor, sink: torch.Tensor | None) -> torch.Tensor:
    """Attention out [B, Hq, S, Dv] with one more logit a head, sink [Hq], whose value is nothing.

    A softmax over logits and sink gives the keys exp(lse) / (exp(lse) + exp(sink)) of the weight.
    """
    if sink is None:
        return out
    share = torch.sigmoid(lse - sink.float()[:, None])
    return (out * share[..., None]).to(out.dtype)
