"""Inductor's lowering of `coded_linear` on processors: `coded_linear.cpp`, compiled as its own loops are."""

from typing import Any

import torch
import torch._inductor.lowering  # before templates, which it imports and which import it
from torch._inductor.codegen.cpp_template import CppTemplate
from torch._inductor.ir import ExternKernel, FixedLayout, FlexibleLayout, IRNode
from torch._inductor.select_algorithm import realize_inputs
from torch._inductor.utils import parallel_num_threads
from torch._inductor.virtualized import V

from . import streams
from .coded_linear import BLOCK, SOURCE


class CodedLinear(CppTemplate):
    """The source with operands filled in."""

    def __init__(self, operands: list[Any], layout: FixedLayout) -> None:
        self.operands = operands
        super().__init__("coded_linear", operands, layout, parallel_num_threads())

    def render(self, **asked: Any) -> str:
        kernel = asked["kernel"]
        x, codes, steps, lows = self.operands
        out = asked.get("template_buffer_node") or self.output_node
        names = ("x_", "codes_", "steps_", "lows_")
        definition = kernel.def_kernel(dict(zip(names, self.operands, strict=True)), {"out": out})
        rows, columns = (int(V.graph.sizevars.guard_int(size)) for size in codes.get_size())
        body = self._template_from_string(SOURCE).render(
            name=kernel.kernel_name, streams=streams.SOURCE, definition=definition,
            profile=kernel.maybe_codegen_profile("coded_linear"),
            rows=rows, columns=columns, block=BLOCK, x=kernel.index(x, ["0"] * 3),
            codes=kernel.index(codes, ["0"] * 2), steps=kernel.index(steps, ["0"] * 2),
            lows=kernel.index(lows, ["0"] * 2),
        )  # fmt: skip
        return self.header().getvalue() + body


def lower_coded_linear(x: Any, codes: Any, steps: Any, lows: Any) -> IRNode:
    # Of operands as dense as a template wants them, a vector may still have gaps between its numbers.
    operands = [ExternKernel.require_contiguous(realize_inputs(given)) for given in (x, codes, steps, lows)]
    size = [1, 1, codes.get_size()[0]]
    layout = FixedLayout(x.get_device(), torch.float32, size, FlexibleLayout.contiguous_strides(size))
    out = CodedLinear(operands, layout).generate().output_node()
    out.data.data.allow_epilogue_fusion = False  # the loops compute a product and nothing after it
    return out
