"""Digits that identify a model's architecture and weights, by which its filters are kept."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from qfpass.filters.artifact import LayerShape
from qfpass.upstream.modules import parts_of

SAMPLES = 64
FINGERPRINT_DIGITS = 16


def fingerprint(tensors: Iterable[Tensor], layers: Sequence[LayerShape]) -> str:
    """16 hexadecimal digits that identify a model's architecture and weights.

    Covers the layers' heads and dimensions, and each tensor's shape and 64 evenly spaced
    values. Those are rounded to bfloat16, so float32 and bfloat16 copies of the same weights
    agree; device, memory layout, names, order and number of equal tensors make no difference: a
    capture may have the constants of a model's code once or once a layer. Reads a few kilobytes of
    weights, whatever their size. Fine-tuned weights differ, as they should.
    """
    lines = [f"layer {x.query_heads} {x.kv_heads} {x.head_dim}" for x in layers]
    plain = (each for tensor in tensors for each in _plain(tensor))
    lines += sorted({f"{list(t.shape)} {_sample(t)}" for t in plain})
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:FINGERPRINT_DIGITS]


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that hold a parameter's numbers: several where it is quantised, else itself."""
    parts = parts_of(tensor)
    if not parts:
        yield tensor
    for part in parts:
        yield from _plain(part)


def _sample(tensor: Tensor) -> list[int]:
    """Evenly spaced values, first and last included, as the bits of their bfloat16 rounding."""
    size = tensor.numel()
    steps = min(SAMPLES, size)
    # Whole-number arithmetic: a float32 linspace would miss by some elements in large tensors.
    places = torch.arange(steps) * (size - 1) // max(steps - 1, 1)
    flat = tensor.detach().reshape(1) if tensor.ndim == 0 else tensor.detach()
    # Indexing by coordinates reads these elements alone, even of a tensor that is not contiguous.
    index = torch.unravel_index(places.to(flat.device), flat.shape)
    return flat[index].to("cpu", torch.bfloat16).view(torch.int16).tolist()
