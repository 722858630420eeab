"""Lower `coded_linear` in Inductor, on processors, to the loops in `loops.cpp`."""

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
from .op import BLOCK, SOURCE


class CodedLinear(LoopTemplate):
    """The loops of `coded_linear`."""

    operator, source = "coded_linear", SOURCE
    operand_names = ("x_", "codes_", "steps_", "lows_")

    def fields(self, kernel: Any) -> dict[str, Any]:
        x, codes, steps, lows = (first_element(kernel, operand) for operand in self.operands)
        rows, columns = map(static_size, self.operands[1].get_size())
        tokens = number_of_tokens(kernel, self.operands[0])
        return {"streams": STREAMS, **tokens, "rows": rows, "columns": columns, "block": BLOCK,
                "x": x, "codes": codes, "steps": steps, "lows": lows}  # fmt: skip


def lower_coded_linear(x: Any, codes: Any, steps: Any, lows: Any) -> Any:
    """Inductor's node for the products [T, N] of x and coded weights."""
    operands = [as_contiguous(given) for given in (x, codes, steps, lows)]
    return lower_to_loops(CodedLinear, operands, [x.get_size()[0], codes.get_size()[0]])
