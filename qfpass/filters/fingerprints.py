"""A short digest of a model's architecture and weights, which identifies the model's filters."""

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..upstream.modules import parts_of
from .q_filters import QFilterSizes

SAMPLES = 64
FINGERPRINT_DIGITS = 16


def fingerprint(tensors: Iterable[Tensor], layers: Sequence[QFilterSizes]) -> str:
    """16 hexadecimal digits that identify a model's architecture and weights.

    The digest covers each layer's head counts and head dimension, and each tensor's shape and 64 evenly
    spaced values. The values are rounded to bfloat16, so float32 and bfloat16 copies of the same weights
    agree. Device, memory layout, names, order and the number of equal tensors make no difference: a capture
    may hold a constant of the model's code once, or once per layer. Fine-tuned weights give another digest.
    Of a quantised weight, its parts count. Only a few kilobytes of weights are read, whatever their size.
    """
    return digest_of(layers, samples_of(tensors))


def samples_of(tensors: Iterable[Tensor]) -> list[tuple[list[int], list[int]]]:
    """The shape and the sampled bits of each tensor, or of the parts of a quantised one."""
    plain = [each for tensor in tensors for each in parts_of(tensor).values() or [tensor]]
    return [(list(t.shape), bits_of(t, places_of(t.shape)).tolist()) for t in plain]


def digest_of(layers: Sequence[QFilterSizes], tensors: Iterable[tuple[Sequence[int], Sequence[int]]]) -> str:
    """The fingerprint of a model with these layers; `tensors`: the shape and the sampled bits of each."""
    lines = [f"layer {x.query_heads} {x.kv_heads} {x.head_dim}" for x in layers]
    lines += sorted({f"{list(shape)} {list(bits)}" for shape, bits in tensors})
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:FINGERPRINT_DIGITS]


def places_of(shape: Sequence[int]) -> tuple[Tensor, ...]:
    """The coordinates of up to 64 evenly spaced elements, the first and the last included."""
    shape = tuple(shape) or (1,)
    size = math.prod(shape)
    steps = min(SAMPLES, size)
    # Integer arithmetic: a float32 linspace would be off by some elements in large tensors.
    places = torch.arange(steps) * (size - 1) // max(steps - 1, 1)
    return torch.unravel_index(places, shape)


def bits_of(tensor: Tensor, places: Sequence[Tensor]) -> Tensor:
    """The bfloat16 bits of a tensor's elements at these coordinates, as int16 on the CPU."""
    flat = tensor.detach().reshape(1) if tensor.ndim == 0 else tensor.detach()
    # Indexing by coordinates copies only these elements, even if the tensor is not contiguous.
    index = tuple(each.to(flat.device) for each in places)
    return flat[index].to("cpu", torch.bfloat16).view(torch.int16)


def filters_digest(filters: Any) -> str:
    """Hexadecimal digits that tell filters, `QFilters` or trained ones, from others."""
    digest = hashlib.sha256()
    for tensor in filters.filters:
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()
