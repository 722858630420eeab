"""Inductor's lowering of `one_token_linears` on processors, to the loops of `one_token.cpp`."""

from collections.abc import Sequence
from typing import Any

from torch._inductor.ir import ExternKernel, FixedLayout, IRNode
from torch._inductor.select_algorithm import realize_inputs
from torch._inductor.virtualized import V

from .loop_template import LoopTemplate, fixed, lower_to_loops, start
from .one_token import SOURCE


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
        return {"x": start(kernel, x), "columns": fixed(x.get_size()[2]), "weights": described}


def lower_one_token_linears(x: Any, weights: Sequence[Any]) -> IRNode:
    # The token is as dense as a template wants it, but a vector may still have gaps between its numbers.
    operands = [ExternKernel.require_contiguous(realize_inputs(x)), *map(_as_rows, weights)]
    size = [1, 1, sum(fixed(weight.get_size()[0]) for weight in weights)]
    return lower_to_loops(OneTokenLinears, operands, size)


def _as_rows(weight: Any) -> Any:
    """A weight whose rows' numbers lie together; one that is computed may lie in any order."""
    weight = realize_inputs(weight)
    layout = weight.maybe_get_layout()
    if isinstance(layout, FixedLayout) and V.graph.sizevars.statically_known_equals(layout.stride[1], 1):
        return weight
    return ExternKernel.require_contiguous(weight)
