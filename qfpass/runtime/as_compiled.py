"""What torch holds for a thread or process, and changes what a graph computes: as it was at compile."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def as_compiled(device: torch.device, default_dtype: torch.dtype) -> Iterator[None]:
    """Inside, autocast is off and the default dtype is this one; of both, what was before comes back.

    A decoder computes in its model's dtype. Its stores, which graphs write to, are of that too.
    """
    before = torch.get_default_dtype()
    if before is default_dtype and not torch.is_autocast_enabled(device.type):
        yield
        return
    torch.set_default_dtype(default_dtype)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_default_dtype(before)
