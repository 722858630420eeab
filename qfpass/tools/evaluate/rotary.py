"""Undoes and averages the rotary embedding of a Hugging Face model, for Expected Attention."""

import torch
from torch import nn

from ...errors import InputError


class Rotary:
    """The rotation by a model's `rotary_emb` module, which pairs the halves of a head.

    Raises:
        InputError: the model hasn't exactly one such module, or it rotates only a part of `head_dim`.
    """

    def __init__(self, model: nn.Module, head_dim: int) -> None:
        found = [module for name, module in model.named_modules() if name.split(".")[-1] == "rotary_emb"]
        if len(found) != 1:
            raise InputError(
                f"expected_attention needs a model with one rotary_emb module, but {type(model).__name__} "
                f"has {len(found)}: leave that baseline out."
            )
        self._module = found[0]
        if self._turns(torch.zeros(1, dtype=torch.long, device=_device(model)))[0].shape[-1] != head_dim:
            raise InputError(
                f"expected_attention needs rotary positions over the whole head; {type(model).__name__} "
                "turns a part of it: leave that baseline out."
            )

    def undo(self, rotated: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """`rotated` [B, H, S, D] at positions [S], as it was before rotation."""
        cos, sin = self._turns(positions)
        # The inverse turns the other way; cos^2 + sin^2 is the square of what the model scales by.
        return (rotated * cos - _quarter_turn(rotated) * sin) / (cos**2 + sin**2)

    def mean_matrix(self, positions: torch.Tensor) -> torch.Tensor:
        """The rotation [D, D] averaged over positions [S]: `x @ matrix.T` is the mean of x rotated."""
        cos, sin = self._turns(positions)
        identity = torch.eye(cos.shape[-1], device=cos.device)
        return torch.diag(cos.mean(0)) + sin.mean(0)[:, None] * _quarter_turn(identity).T

    def _turns(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        like = torch.zeros(1, device=positions.device)
        cos, sin = self._module(like, positions[None])
        return cos[0], sin[0]


def _quarter_turn(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([-second, first], dim=-1)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
