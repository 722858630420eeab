"""Memory bandwidth, which bounds how fast a decode step can be."""

from collections.abc import Callable

import torch
from torch import nn

CPU_BYTES, CUDA_BYTES = 2**29, 2**32  # beyond any processor's caches


def reader(device: torch.device) -> tuple[Callable[[], object], int]:
    """A function that reads memory once at full speed, and the number of bytes that it reads."""
    nbytes = CUDA_BYTES if device.type == "cuda" else CPU_BYTES
    numbers = torch.ones(nbytes // 4, device=device)
    return (lambda: numbers.sum()), nbytes


def weight_nbytes(model: nn.Module) -> int:
    """Bytes of weights that one token reads: all except an input embedding not shared with the head.

    In a mixture of experts, a token reads fewer.
    """
    head = _weight(model, "get_output_embeddings")
    embedding = _weight(model, "get_input_embeddings")
    looked_up = 0 if embedding is None or embedding is head else embedding.nbytes
    return sum(parameter.nbytes for parameter in model.parameters()) - looked_up


def _weight(model: nn.Module, getter: str) -> torch.Tensor | None:
    module = getattr(model, getter, lambda: None)()
    return getattr(module, "weight", None)
