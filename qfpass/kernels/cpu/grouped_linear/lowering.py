"""Lower `grouped_linears` in Inductor, on processors, to the loops in `loops.cpp`."""

from collections.abc import Sequence
from typing import Any

from ....upstream.inductor_template import (
    LoopTemplate,
    as_contiguous,
    first_element,
    lower_to_loops,
    static_size,
)
from ..streams import STREAMS
from ..tokens import number_of_tokens
from .op import SOURCE, UNIT, ZERO


class GroupedLinears(LoopTemplate):
    """The loops of `grouped_linears`; after x come the codes, scales and zeros of each weight."""

    operator, source = "grouped_linears", SOURCE

    @property
    def operand_names(self) -> Sequence[str]:
        weights = len(self.operands) // 3
        return ["x_", *(f"{kind}{i}_" for i in range(weights) for kind in ("codes", "scales", "zeros"))]

    def fields(self, kernel: Any) -> dict[str, Any]:
        x, *operands = self.operands
        columns = static_size(x.get_size()[1])
        first, described = 0, []
        for codes, scales, zeros in zip(*(operands[i::3] for i in range(3)), strict=True):
            rows, groups = map(static_size, scales.get_size())
            described.append(
                {
                    "rows": rows, "first": first, "group": columns // groups,
                    "codes": first_element(kernel, codes), "scales": first_element(kernel, scales),
                    "zeros": first_element(kernel, zeros) if zeros is not None else None,
                }
            )  # fmt: skip
            first += rows
        return {
            "streams": STREAMS, "unit": UNIT, "zero": ZERO, "x": first_element(kernel, x),
            **number_of_tokens(kernel, x), "columns": columns, "total": first, "weights": described,
        }  # fmt: skip


def lower_grouped_linears(x: Any, codes: Sequence[Any], scales: Sequence[Any], zeros: Sequence[Any]) -> Any:
    """Inductor's node for the products of x and weights in groups, concatenated."""
    operands = [operand for weight in zip(codes, scales, zeros, strict=True) for operand in weight]
    given = [None if operand is None else as_contiguous(operand) for operand in operands]
    size = [x.get_size()[0], sum(static_size(each.get_size()[0]) for each in codes)]
    return lower_to_loops(GroupedLinears, [as_contiguous(x), *given], size)
