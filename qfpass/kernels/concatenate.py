"""Parts of one vector, each written where it belongs.

Inductor computes a step's concatenations where they are read (see `Decoder`), for which it can't use vectors;
this one, an operator, is lowered to buffers that share memory.
"""

import torch


@torch.library.custom_op("qfpass::concatenate", mutates_args=())
def concatenate(parts: list[torch.Tensor]) -> torch.Tensor:
    """Parts [..., N1], [..., N2], ... -> [..., N1 + N2 + ...]."""
    return torch.cat(parts, -1)


@concatenate.register_fake
def _fake(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(parts, -1)
