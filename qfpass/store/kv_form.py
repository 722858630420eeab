"""KVForm: the sizes, dtype and device of what a token brings to a layer's store."""

from typing import NamedTuple, Protocol, Self

import torch


class HasHeads(Protocol):
    """An attention or a layer: whatever has so many key and value heads of these sizes."""

    @property
    def kv_heads(self) -> int:
        """The heads of keys and values."""

    @property
    def head_dim(self) -> int:
        """The size of a key in one head."""

    @property
    def value_dim(self) -> int:
        """The size of a value in one head."""


class KVForm(NamedTuple):
    """A token's keys [Hkv, D] and values [Hkv, Dv], in the model's dtype, on the layer's device."""

    kv_heads: int
    head_dim: int
    value_dim: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, layer: HasHeads, dtype: torch.dtype, device: torch.device) -> Self:
        """The form of a layer whose model has this dtype."""
        return cls(layer.kv_heads, layer.head_dim, layer.value_dim, dtype, device)

    def random(self, rows: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Normal keys [rows, Hkv, tokens, D] and values [..., Dv], the same in every call."""
        generator = torch.Generator().manual_seed(0)
        shape = rows, self.kv_heads, tokens
        key, value = (
            torch.randn(*shape, dim, generator=generator) for dim in (self.head_dim, self.value_dim)
        )
        return key.to(self.device, self.dtype), value.to(self.device, self.dtype)
