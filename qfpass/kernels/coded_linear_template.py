"""Inductor's lowering of `coded_linear` on processors, to the loops of `coded_linear.cpp`."""

from typing import Any

from torch._inductor.ir import ExternKernel, IRNode
from torch._inductor.select_algorithm import realize_inputs

from .coded_linear import BLOCK, SOURCE
from .loop_template import LoopTemplate, fixed, lower_to_loops, start


class CodedLinear(LoopTemplate):
    operator, source = "coded_linear", SOURCE
    operand_names = ("x_", "codes_", "steps_", "lows_")

    def fields(self, kernel: Any) -> dict[str, Any]:
        x, codes, steps, lows = (start(kernel, operand) for operand in self.operands)
        rows, columns = map(fixed, self.operands[1].get_size())
        return {"rows": rows, "columns": columns, "block": BLOCK,
                "x": x, "codes": codes, "steps": steps, "lows": lows}  # fmt: skip


def lower_coded_linear(x: Any, codes: Any, steps: Any, lows: Any) -> IRNode:
    # Of operands as dense as a template wants them, a vector may still have gaps between its numbers.
    operands = [ExternKernel.require_contiguous(realize_inputs(given)) for given in (x, codes, steps, lows)]
    return lower_to_loops(CodedLinear, operands, [1, 1, codes.get_size()[0]])
