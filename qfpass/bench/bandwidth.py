"""How fast this machine reads memory, and so how fast a decode step can be."""

from collections.abc import Callable

import torch
from torch import nn

CPU_BYTES, CUDA_BYTES = 2**29, 2**32  # beyond any processor's caches


def reader(device: torch.device) -> tuple[Callable[[], object], int]:
    """A call that reads memory once as fast as it goes, and how many bytes it reads."""
    nbytes = CUDA_BYTES if device.type == "cuda" else CPU_BYTES
    numbers = torch.ones(nbytes // 4, device=device)
    return (lambda: numbers.sum()), nbytes


def weight_nbytes(model: nn.Module) -> int:
    """Bytes of weights that one token reads: all, but of an input embedding that isn't the head's too.

    Of a mixture of experts a token reads fewer.
    """
    head = _weight(model, "get_output_embeddings")
    embedding = _weight(model, "get_input_embeddings")
    looked_up = 0 if embedding is None or embedding is head else embedding.nbytes
    return sum(parameter.nbytes for parameter in model.parameters()) - looked_up


def _weight(model: nn.Module, getter: str) -> torch.Tensor | None:
    module = getattr(model, getter, lambda: None)()
    return getattr(module, "weight", None)
