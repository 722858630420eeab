"""What torch promises of fake tensors, and of sizes that are symbols."""

from typing import Any

import pytest
import torch
from torch import nn

from qfpass.upstream.fake_tensors import (
    Fakes,
    fakes,
    has_sizes_of_values,
    mode_of,
)

aten = torch.ops.aten


@pytest.fixture
def made() -> Fakes:
    made = fakes()
    assert made is not None
    return made


class Chooses(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sin()[x > 0]


def test_has_sizes_of_values_tells_them_from_sizes_that_vary() -> None:
    rows = torch.export.Dim("rows")
    program = torch.export.export(Chooses(), (torch.ones(4, 3),), dynamic_shapes=({0: rows},), strict=False)
    told = {str(node.target): has_sizes_of_values(node.meta.get("val")) for node in program.graph.nodes}
    assert told["aten.sin.default"] is False
    assert told["aten.index.Tensor"] is True
    assert not any(map(has_sizes_of_values, (None, 3, torch.ones(2))))


def test_mode_of_a_traced_value_makes_others_of_its_kind() -> None:
    program = torch.export.export(Chooses(), (torch.ones(4, 3),), strict=False)
    value = next(node.meta["val"] for node in program.graph.nodes if node.target is aten.sin.default)
    with mode_of(value):
        more = value + torch.arange(3)
    assert type(more) is type(value) and more.shape == (4, 3)


def test_fakes_have_the_form_and_no_numbers(made: Fakes) -> None:
    plain = torch.ones(2, 3, dtype=torch.float64).t()
    fake = made.fake(plain)
    assert made.is_fake(fake) and not made.is_fake(plain)
    assert (fake.shape, fake.stride(), fake.dtype) == (plain.shape, plain.stride(), plain.dtype)
    assert made.device_of(fake) == made.device_of(plain) == plain.device
    with pytest.raises(Exception, match=r"(?i)data.dependent|_local_scalar_dense"):
        fake.sum().item()


def test_fakes_let_every_operator_be_watched(made: Fakes) -> None:
    seen = list[Any]()

    def run(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        seen.append(operator)
        if operator is aten.cos.default:
            return args[0]
        return operator(*args, **kwargs)

    linear, constant = nn.Linear(3, 3), torch.ones(3)
    weights = {name: made.fake(weight) for name, weight in linear.named_parameters()}
    x = made.fake(torch.ones(2, 3))
    with torch.no_grad(), made.watched(run):
        assert made.is_fake(torch.arange(3))
        out = torch.func.functional_call(linear, weights, (x,))
        assert x.cos() is x
        assert made.is_fake(out * constant)
        assert torch.compiler.is_exporting()
        assert made.numbers_of(constant) == [1.0, 1.0, 1.0]
    assert not torch.compiler.is_exporting()
    assert [operator for operator in seen if operator is not torch.ops.prim.device.default] == [
        aten.arange.default, aten.t.default, aten.addmm.default, aten.cos.default, aten.mul.Tensor
    ]  # fmt: skip


def test_fakes_are_not_asked_by_their_device(made: Fakes) -> None:
    seen, fake = list[Any](), made.fake(torch.ones(2))
    with made.watched(lambda operator, args, kwargs: seen.append(operator) or operator(*args, **kwargs)):
        made.device_of(fake)
    assert seen == []
