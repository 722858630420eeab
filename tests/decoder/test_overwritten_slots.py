"""What a step is about to overwrite is found where the layers of a store lie side by side, and apart."""

from typing import Any

import pytest
import torch
from bounded import compiled, llama
from served import prompt

from qfpass.decoder.overwritten_slots import OverwriteFinder, finder_graph, slots_of_next


@pytest.mark.parametrize("apart", [False, True])
def test_a_package_only_sees_layers_side_by_side(apart: bool) -> None:
    """It takes the strides for granted that it was compiled for; a pool's row has others."""
    model, calls = compiled(llama()), 0
    pool, decoder = model.pool(3), model.qfpass_decoder
    row = [pool.join(), pool.join()][1]
    pool.read(row, prompt(5))
    session = pool._rows.session(row) if apart else pool.copy(row)

    def package(position: torch.Tensor, recent: torch.Tensor, *tensors: torch.Tensor) -> Any:
        nonlocal calls
        calls += 1
        assert all(tensor.is_contiguous() for tensor in tensors)
        return finder_graph(session.stores.stacks)(position, recent, *tensors)

    find = OverwriteFinder(decoder.config, decoder.replays, package)
    for _ in range(2):
        found = find(session.stores, session.rows, session.row_sizes)
        expected = slots_of_next(session.stores, session.rows, session.row_sizes, torch.device("cpu"))
        slots = [part.slot.flatten().tolist() for part in found.held]
        assert slots == [each.flatten().tolist() for each in expected]
        assert expected[0].unique().tolist() == [5]
    assert calls == (0 if apart else 2)
