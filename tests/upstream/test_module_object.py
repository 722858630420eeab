"""What nn.Module promises of its own parts and of moving them."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from qfpass.upstream.module_object import (
    SharedParameters,
    inside_torch_compile,
    require_moves_in_one_place,
    shallow_copy,
)


def test_shallow_copy_shares_parts_and_sets_its_own() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    module.register_buffer("count", torch.zeros(1))
    twin = shallow_copy(module)
    assert twin[0] is module[0] and twin.count is module.count
    twin.extra = nn.Linear(2, 2)
    twin.register_buffer("count", torch.ones(1))
    assert not hasattr(module, "extra") and int(module.count) == 0


MOVES: list[Callable[[nn.Module], object]] = [
    lambda module: module.to(torch.float64),
    lambda module: module.half(),
    lambda module: module.to("meta"),
    lambda module: module.bfloat16(),
]


@pytest.mark.parametrize("move", MOVES)
def test_require_moves_in_one_place_which_every_way_of_moving_goes_by(
    move: Callable[[nn.Module], object],
) -> None:
    require_moves_in_one_place()
    asked = list[torch.Tensor]()

    class Held(SharedParameters):
        def refuse_to_become(self, like: Callable[[torch.Tensor], torch.Tensor]) -> None:
            asked.append(like(torch.empty(0)))

    held = Held()
    held.weight = nn.Parameter(torch.zeros(2))
    move(held)
    assert len(asked) == 1
    assert held.weight.dtype == torch.float32 and held.weight.device.type == "cpu"


def test_inside_torch_compile_is_the_module_itself() -> None:
    module = nn.Linear(2, 2)
    assert inside_torch_compile(torch.compile(module, backend="eager")) is module
    assert inside_torch_compile(module) is module


def test_shallow_copy_has_neither_hooks_nor_a_forward_of_its_own() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    module.register_forward_hook(lambda *_: None)
    module.register_forward_pre_hook(lambda *_: None, with_kwargs=True)
    module.forward = lambda x: x
    module.compile(backend="eager")
    twin = shallow_copy(module)
    kept = [name for name, value in vars(twin).items() if "hooks" in name and value]
    assert not kept and "forward" not in vars(twin)
    assert torch.equal(twin(torch.ones(1, 2)), module[0](torch.ones(1, 2)))
