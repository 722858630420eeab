"""What AOTInductor promises of a package: it reads its weights from outside, in place, and takes any size."""

import pytest
import torch
from torch import nn

from qfpass.upstream.aot_packages import LoadedPackage, compile_package, load_package, traced_size


class Nested(nn.Module):
    """Takes nested tuples, changes an input in place, and gives nested lists."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3, bias=False)

    def forward(
        self, given: tuple[torch.Tensor, torch.Tensor], count: torch.Tensor
    ) -> list[list[torch.Tensor]]:
        rows, total = given
        total.add_(1)
        first = rows.narrow(0, 0, traced_size.function(count, 4))
        return [[self.linear(rows)], [first.sum(0)]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Nested, LoadedPackage]:
    module, file = Nested(), tmp_path_factory.mktemp("package") / "nested.pt2"
    with torch.no_grad():
        given = (torch.ones(4, 3), torch.zeros(3)), torch.tensor(2)
        compile_package.function(torch.export.export(module, given, strict=False), file, {})
    return module, load_package.function(file, torch.device("cpu"))


def test_compile_package_leaves_weights_outside(
    made: tuple[Nested, LoadedPackage],
) -> None:
    assert list(made[1].weight_names) == ["linear.weight"]


def test_load_package_reads_weights_in_place(
    made: tuple[Nested, LoadedPackage],
) -> None:
    module, package = made
    rows, total = torch.randn(4, 3), torch.zeros(3)
    with torch.no_grad():
        package.read_weights_from({"linear.weight": module.linear.weight.detach()})
        module.linear.weight.mul_(2)
        (product,), _ = package((rows, total), torch.tensor(2))
        torch.testing.assert_close(product, module.linear(rows))
    torch.testing.assert_close(total, torch.ones(3))


@pytest.mark.parametrize("count", range(5))
def test_traced_size_is_any(made: tuple[Nested, LoadedPackage], count: int) -> None:
    module, package = made
    package.read_weights_from({"linear.weight": module.linear.weight.detach()})
    rows = torch.randn(4, 3)
    _, (total,) = package((rows, torch.zeros(3)), torch.tensor(count))
    torch.testing.assert_close(total, rows[:count].sum(0))
