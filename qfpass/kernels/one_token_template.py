"""Inductor's lowering of `one_token_linears` on processors, to the loops of `one_token.cpp`."""

from collections.abc import Sequence
from typing import Any

from ..upstream.inductor_template import LoopTemplate, as_rows, dense, fixed, lower_to_loops, start
from .one_token import SOURCE
from .streams import STREAMS


class OneTokenLinears(LoopTemplate):
    operator, source = "one_token_linears", SOURCE

    @property
    def operand_names(self) -> Sequence[str]:
        return ["x_", *(f"weight{i}_" for i in range(len(self.operands) - 1))]

    def fields(self, kernel: Any) -> dict[str, Any]:
        x, *weights = self.operands
        first, described = 0, []
        for weight in weights:
            rows = fixed(weight.get_size()[0])
            described.append(
                {
                    "rows": rows,
                    "first": first,
                    "row": kernel.stride(weight, 0),
                    "start": start(kernel, weight),
                }
            )
            first += rows
        columns = fixed(x.get_size()[2])
        return {"streams": STREAMS, "x": start(kernel, x), "columns": columns, "weights": described}


def lower_one_token_linears(x: Any, weights: Sequence[Any]) -> Any:
    size = [1, 1, sum(fixed(weight.get_size()[0]) for weight in weights)]
    return lower_to_loops(OneTokenLinears, [dense(x), *map(as_rows, weights)], size)
