"""Which weights a recorded step looks after."""

import torch

from qfpass.lowering.weight_guard import read_by_steps
from qfpass.regions.packed_copy import Held, PackedCopy, form_of_all


def test_steps_read_what_was_not_copied() -> None:
    """Copies never move; chunks alone read the codes that were copied; scales are read as they lie."""
    held = Held(torch.ones(4, 32, dtype=torch.int8), torch.ones(4, 1), torch.zeros(4, 1, dtype=torch.int8))
    form = form_of_all([held])
    assert form is not None
    copy, norm = PackedCopy(held, form), torch.ones(32)
    weights = [norm, *(part for part in held if part is not None), *copy.made]
    assert [id(weight) for weight in read_by_steps(weights, [copy])] == [id(norm), id(held.scales)]
    assert read_by_steps(weights, []) == weights
