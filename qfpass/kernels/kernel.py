"""A kernel and its name."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Kernel:
    """Attention after the contract in `qfpass.kernels`: a name, which reports show, and a function.

    `softcap` is set by the pass for an attention that caps its logits; the function then gets `softcap=`.
    """

    name: str
    function: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    softcap: float | None = None

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **form: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention (out, lse) by the kernel, with its soft cap if it has one."""
        if self.softcap is not None:
            form["softcap"] = self.softcap
        return self.function(query, key, value, **form)
