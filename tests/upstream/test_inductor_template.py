"""Inductor puts loops of ours into its code for processors as they are written, and nothing into them."""

from typing import Any

import pytest
import torch
from torch._inductor.utils import run_and_get_code

from qfpass.upstream.inductor import lower_to_own_loops
from qfpass.upstream.inductor_template import (
    LoopTemplate,
    as_contiguous,
    as_contiguous_rows,
    first_element,
    lower_to_loops,
    static_size,
)
from qfpass.upstream.vector_isa import has_vectors


class Sums(LoopTemplate):
    """Of each row of a matrix, and a bias if there is one."""

    operator = "qfpass_test_sums"
    source = """
extern "C" {{ definition }}
{
  {{ profile }}
  for (int64_t row = 0; row < {{ rows }}; ++row) {
    at::vec::Vectorized<float> sum(0);
    float rest = {{ bias }};
    const float* numbers = &{{ matrix }} + row * {{ apart }};
    int64_t column = 0;
    for (; column + sum.size() <= {{ columns }}; column += sum.size())
      sum = sum + at::vec::Vectorized<float>::loadu(numbers + column);
    for (; column < {{ columns }}; ++column) rest += numbers[column];
    auto add = [](auto& x, auto& y) { return x + y; };
    out[row] = rest + at::vec::vec_reduce_all<float>(add, sum);
  }
}
"""
    operand_names = ("matrix_", "bias_")

    def fields(self, kernel: Any) -> dict[str, Any]:
        matrix, bias = self.operands
        rows, columns = map(static_size, matrix.get_size())
        return {
            "rows": rows, "columns": columns, "apart": kernel.stride(matrix, 0),
            "matrix": first_element(kernel, matrix),
            "bias": "0" if bias is None else first_element(kernel, bias),
        }  # fmt: skip


@torch.library.custom_op("qfpass_test::sums", mutates_args=())
def sums(matrix: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return matrix.sum(1) + (0 if bias is None else bias)


@sums.register_fake
def _fake(matrix: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return matrix.new_empty(matrix.shape[0])


def lower_sums(matrix: Any, bias: Any) -> Any:
    operands = [as_contiguous_rows(matrix), None if bias is None else as_contiguous(bias)]
    return lower_to_loops(Sums, operands, matrix.get_size()[:1])


def test_loops_run_between_inductors_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of matrices with gaps between rows, in columns, or computed; a bias with gaps; read by another loop."""
    if not has_vectors():
        pytest.skip("Inductor knows no vector instructions of this processor")
    monkeypatch.setattr(lower_to_own_loops, "failure", None)
    assert lower_to_own_loops.function(lambda: {torch.ops.qfpass_test.sums.default: lower_sums})

    def function(matrix: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        in_columns = matrix[:4, :4].mT.contiguous().mT
        return (
            1
            + sums(matrix[:4, :37], None)
            + sums(in_columns, bias[::2])
            + 3 * sums(2 * matrix[:4], bias[::2])
        )

    matrix, bias = torch.randn(5, 40), torch.randn(2)
    with torch._inductor.config.patch(force_disable_caches=True):
        out, codes = run_and_get_code(torch.compile(function, fullgraph=True, dynamic=False), matrix, bias)
    torch.testing.assert_close(out, function(matrix, bias), rtol=1e-4, atol=1e-4)
    assert lower_to_own_loops.failure is None
    assert any("vec_reduce_all<float>(add, sum)" in code for code in codes)
    assert not any("torch.ops.qfpass_test.sums.default(" in code for code in codes)
