"""Lower `few_token_linears` in Inductor, on processors, to the loops in `loops.cpp`."""

from collections.abc import Sequence
from typing import Any

from ....upstream.inductor_template import (
    LoopTemplate,
    as_contiguous,
    as_contiguous_rows,
    first_element,
    lower_to_loops,
    static_size,
)
from ..streams import STREAMS
from ..tokens import number_of_tokens
from .op import SOURCE


class FewTokenLinears(LoopTemplate):
    """The loops of `few_token_linears`."""

    operator, source = "few_token_linears", SOURCE

    @property
    def operand_names(self) -> Sequence[str]:
        return ["x_", *(f"weight{i}_" for i in range(len(self.operands) - 1))]

    def fields(self, kernel: Any) -> dict[str, Any]:
        x, *weights = self.operands
        first, described = 0, []
        for weight in weights:
            rows = static_size(weight.get_size()[0])
            described.append(
                {
                    "rows": rows,
                    "first": first,
                    "row": kernel.stride(weight, 0),
                    "start": first_element(kernel, weight),
                }
            )
            first += rows
        columns = static_size(x.get_size()[1])
        return {
            "streams": STREAMS, "dtype": kernel.dtype(x), "x": first_element(kernel, x),
            **number_of_tokens(kernel, x), "columns": columns, "total": first, "weights": described,
        }  # fmt: skip


def lower_few_token_linears(x: Any, weights: Sequence[Any]) -> Any:
    """Inductor's node for the products of x and weights, concatenated."""
    size = [x.get_size()[0], sum(static_size(weight.get_size()[0]) for weight in weights)]
    return lower_to_loops(FewTokenLinears, [as_contiguous(x), *map(as_contiguous_rows, weights)], size)
