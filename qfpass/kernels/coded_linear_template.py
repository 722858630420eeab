"""Inductor's lowering of `coded_linear` on processors, to the loops of `coded_linear.cpp`."""

from typing import Any

from ..upstream.inductor_template import LoopTemplate, dense, fixed, lower_to_loops, start
from .coded_linear import BLOCK, SOURCE
from .streams import STREAMS


class CodedLinear(LoopTemplate):
    operator, source = "coded_linear", SOURCE
    operand_names = ("x_", "codes_", "steps_", "lows_")

    def fields(self, kernel: Any) -> dict[str, Any]:
        x, codes, steps, lows = (start(kernel, operand) for operand in self.operands)
        rows, columns = map(fixed, self.operands[1].get_size())
        return {"streams": STREAMS, "rows": rows, "columns": columns, "block": BLOCK,
                "x": x, "codes": codes, "steps": steps, "lows": lows}  # fmt: skip


def lower_coded_linear(x: Any, codes: Any, steps: Any, lows: Any) -> Any:
    operands = [dense(given) for given in (x, codes, steps, lows)]
    return lower_to_loops(CodedLinear, operands, [1, 1, codes.get_size()[0]])
