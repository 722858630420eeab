"""A quantised weight as the loops of few tokens read it: codes in pairs where four bits hold them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..errors import QFPassError
from ..kernels.cpu.grouped_linear.op import ZERO, fits, pack


class Held(NamedTuple):
    """A weight [N, K] = (codes - zeros) * scales as the model holds it; see `group_codes.GroupCodes`."""

    codes: torch.Tensor
    scales: torch.Tensor
    zeros: torch.Tensor | None


class PackedForm(NamedTuple):
    """What copies of one linear in every layer have in common, so that layers share their code.

    Attributes:
        in_pairs: whether codes are of four bits, packed in pairs; else they are read as they lie.
        has_zeros: whether any zero isn't 0.
    """

    in_pairs: bool
    has_zeros: bool


def form_of_all(layers: Sequence[Held]) -> PackedForm | None:
    """The form of one linear's weight in all layers; None if the loops don't take one of them."""
    if not all(fits(held.codes, held.scales) and not _is_untracked(held) for held in layers):
        return None
    has_zeros = any(held.zeros is not None and bool(held.zeros.any()) for held in layers)
    return PackedForm(all(_fit_in_four_bits(held.codes) for held in layers), has_zeros)


class PackedCopy:
    """The operands of `grouped_linears` for a weight, and the tensors that they were made of.

    Attributes:
        operands: codes, scales and zeros; those that needn't be made are the weight's own tensors.
    """

    def __init__(self, held: Held, form: PackedForm) -> None:
        self.held, self._form = held, form
        self.operands = self._made()

    @property
    def made(self) -> list[torch.Tensor]:
        """The operands that aren't the weight's own tensors."""
        return _others(self.operands, self.held)

    @property
    def unread(self) -> list[torch.Tensor]:
        """The weight's own tensors that aren't operands."""
        return _others(self.held, self.operands)

    def renew(self) -> None:
        """Write what the weight holds now into the operands.

        Raises:
            QFPassError: it doesn't fit into their form.
        """
        form = form_of_all([self.held])
        if form is None or form.in_pairs < self._form.in_pairs or form.has_zeros > self._form.has_zeros:
            raise QFPassError(
                "a quantised weight has changed since qfpass.compile, to codes or zeros that its packed copy "
                "has no room for: compile the model again."
            )
        for operand, now in zip(self.operands, self._made(), strict=True):
            if operand is not None and now is not None and operand is not now:
                operand.copy_(now)

    def _made(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        codes, scales, zeros = self.held
        scales = scales.contiguous()
        if self._form.in_pairs:
            codes = pack(codes)
        if not self._form.has_zeros:
            return codes, scales, None
        zeros = torch.zeros_like(scales) if zeros is None else zeros
        return codes, scales, zeros.float() + (ZERO if self._form.in_pairs else 0)


def _others(
    tensors: Sequence[torch.Tensor | None], known: Sequence[torch.Tensor | None]
) -> list[torch.Tensor]:
    """The tensors that aren't among the known ones."""
    ids = set(map(id, known))
    return [tensor for tensor in tensors if tensor is not None and id(tensor) not in ids]


def _is_untracked(held: Held) -> bool:
    """Whether a tensor doesn't count its changes, which a copy could not follow then."""
    return any(tensor is not None and tensor.is_inference() for tensor in held)


def _fit_in_four_bits(codes: torch.Tensor) -> bool:
    lowest, highest = codes.aminmax()
    return bool(lowest >= -ZERO) and bool(highest < 16 - ZERO)
