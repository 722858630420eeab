"""Inductor's lowering of `one_token_linears` on processors: `one_token.cpp`, compiled as its own loops."""

from collections.abc import Sequence
from typing import Any

import torch
import torch._inductor.lowering  # before templates, which it imports and which import it
from torch._inductor.codegen.cpp_template import CppTemplate
from torch._inductor.ir import ExternKernel, FixedLayout, FlexibleLayout, IRNode
from torch._inductor.select_algorithm import realize_inputs
from torch._inductor.utils import parallel_num_threads
from torch._inductor.virtualized import V

from . import streams
from .one_token import SOURCE


class OneTokenLinears(CppTemplate):
    """The source with operands filled in."""

    def __init__(self, operands: list[Any], layout: FixedLayout) -> None:
        self.operands = operands
        super().__init__("one_token_linears", operands, layout, parallel_num_threads())

    def render(self, **asked: Any) -> str:
        kernel = asked["kernel"]
        x, *weights = self.operands
        out = asked.get("template_buffer_node") or self.output_node
        names = ["x_", *(f"weight{i}_" for i in range(len(weights)))]
        definition = kernel.def_kernel(dict(zip(names, self.operands, strict=True)), {"out": out})
        first, described = 0, []
        for weight in weights:
            rows = _fixed(weight.get_size()[0])
            described.append(
                {"rows": rows, "first": first, "row": kernel.stride(weight, 0),
                 "start": kernel.index(weight, ["0", "0"])}
            )  # fmt: skip
            first += rows
        body = self._template_from_string(SOURCE).render(
            name=kernel.kernel_name, streams=streams.SOURCE, definition=definition,
            profile=kernel.maybe_codegen_profile("one_token_linears"),
            x=kernel.index(x, ["0"] * 3), columns=_fixed(x.get_size()[2]), weights=described,
        )  # fmt: skip
        return self.header().getvalue() + body


def _fixed(size: Any) -> int:
    return int(V.graph.sizevars.guard_int(size))


def lower_one_token_linears(x: Any, weights: Sequence[Any]) -> IRNode:
    # The token is as dense as a template wants it, but a vector may still have gaps between its numbers.
    operands = [ExternKernel.require_contiguous(realize_inputs(x)), *map(_as_rows, weights)]
    size = [1, 1, sum(_fixed(weight.get_size()[0]) for weight in weights)]
    layout = FixedLayout(x.get_device(), torch.float32, size, FlexibleLayout.contiguous_strides(size))
    out = OneTokenLinears(operands, layout).generate().output_node()
    out.data.data.allow_epilogue_fusion = False  # the loops compute products and nothing after them
    return out


def _as_rows(weight: Any) -> Any:
    """A weight whose rows' numbers lie together; one that is computed may lie in any order."""
    weight = realize_inputs(weight)
    layout = weight.maybe_get_layout()
    if isinstance(layout, FixedLayout) and V.graph.sizevars.statically_known_equals(layout.stride[1], 1):
        return weight
    return ExternKernel.require_contiguous(weight)
