"""Restore the torch settings that change what a graph computes: autocast and the default dtype."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def compile_time_settings(device: torch.device, default_dtype: torch.dtype) -> Iterator[None]:
    """Turn autocast off and set `default_dtype` inside the context; both are restored on exit.

    A decoder computes in its model's dtype, and the stores that its graphs write to have that dtype too.
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
