"""Inductor's lowering of `attend_one` on processors: `one_query.cpp`, compiled as its own loops are."""

from typing import Any

import torch
import torch._inductor.lowering  # before templates, which it imports and which import it
from torch._inductor.codegen.cpp_template import CppTemplate
from torch._inductor.ir import FixedLayout, FlexibleLayout, IRNode
from torch._inductor.select_algorithm import realize_inputs
from torch._inductor.utils import parallel_num_threads
from torch._inductor.virtualized import V

from . import streams
from .one_query_op import SOURCE


class AttendOne(CppTemplate):
    """The source with operands filled in; scales may be missing."""

    def __init__(self, operands: list[Any], layout: FixedLayout) -> None:
        self.operands = operands
        given = [operand for operand in operands if operand is not None]
        super().__init__("attend_one", given, layout, parallel_num_threads())

    def render(self, **asked: Any) -> str:
        kernel = asked["kernel"]
        query, key, value, *scales = self.operands
        out = asked.get("template_buffer_node") or self.output_node
        names = ("query_", "key_", "value_", "key_scale_", "value_scale_")
        definition = kernel.def_kernel(dict(zip(names, self.operands, strict=True)), {"out": out})
        start = ["0"] * 4
        body = self._template_from_string(SOURCE).render(
            name=kernel.kernel_name, streams=streams.SOURCE,
            definition=definition, profile=kernel.maybe_codegen_profile("attend_one"),
            dtype=kernel.dtype(key),
            batch=kernel.size(query, 0), heads=_fixed(query, 1), group=_fixed(query, 2),
            dim=_fixed(key, 3), value_dim=_fixed(value, 3), slots=kernel.size(key, 2),
            query=kernel.index(query, start), key=kernel.index(key, start), value=kernel.index(value, start),
            key_strides=_strides(kernel, key), value_strides=_strides(kernel, value),
            key_scale=_start(kernel, scales[0]), value_scale=_start(kernel, scales[1]),
            scale_strides=[_strides(kernel, scale) for scale in scales],
        )  # fmt: skip
        return self.header().getvalue() + body


def _fixed(node: Any, dim: int) -> int:
    return int(V.graph.sizevars.guard_int(node.get_size()[dim]))


def _strides(kernel: Any, node: Any) -> list[str]:
    return (
        ["0"] * 2 if node is None else [kernel.stride(node, dim) for dim in range(len(node.get_size()) - 1)]
    )


def _start(kernel: Any, scale: Any) -> str:
    return "nullptr" if scale is None else f"&{kernel.index(scale, ['0'] * 3)}"


def lower_attend_one(query: Any, key: Any, value: Any, key_scale: Any, value_scale: Any) -> IRNode:
    operands = [None if x is None else realize_inputs(x) for x in (query, key, value, key_scale, value_scale)]
    size = [*query.get_size()[:3], value.get_size()[3] + 1]
    layout = FixedLayout(query.get_device(), torch.float32, size, FlexibleLayout.contiguous_strides(size))
    out = AttendOne(operands, layout).generate().output_node()
    out.data.data.allow_epilogue_fusion = False  # the loops compute attention and nothing after it
    return out
