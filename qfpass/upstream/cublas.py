"""The scratch memory that cuBLAS keeps from one product to the next, one block a stream."""

import torch

from .entry import Needed


@Needed
def free_workspaces() -> None:
    """Free cuBLAS's scratch memory on every stream; the next product on a stream allocates it again.

    Without it: steps can't be captured as CUDA graphs.
    """
    torch._C._cuda_clearCublasWorkspaces()
