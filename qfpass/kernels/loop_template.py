"""Loops of our own in Inductor's code for processors: a C++ source, compiled as its own loops are."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch._inductor.lowering  # before templates, which it imports and which import it
from torch._inductor.codegen.cpp_template import CppTemplate
from torch._inductor.ir import FixedLayout, FlexibleLayout, IRNode
from torch._inductor.utils import parallel_num_threads
from torch._inductor.virtualized import V

from . import streams


class LoopTemplate(CppTemplate, ABC):
    """A source with operands filled in, of which some may be missing.

    Attributes:
        operator: the name of what the loops compute.
        source: a Jinja template, given `name`, `streams`, `definition`, `profile` and what `fields` gives.
    """

    operator: ClassVar[str]
    source: ClassVar[str]

    def __init__(self, operands: Sequence[Any], layout: FixedLayout) -> None:
        self.operands = list(operands)
        given = [operand for operand in operands if operand is not None]
        super().__init__(self.operator, given, layout, parallel_num_threads())

    @property
    @abstractmethod
    def operand_names(self) -> Sequence[str]:
        """Of the kernel's parameters, one an operand."""

    @abstractmethod
    def fields(self, kernel: Any) -> dict[str, Any]:
        """Sizes, strides and addresses that the source names."""

    def render(self, **asked: Any) -> str:
        kernel = asked["kernel"]
        out = asked.get("template_buffer_node") or self.output_node
        definition = kernel.def_kernel(
            dict(zip(self.operand_names, self.operands, strict=True)), {"out": out}
        )
        body = self._template_from_string(self.source).render(
            name=kernel.kernel_name,
            streams=streams.SOURCE,
            definition=definition,
            profile=kernel.maybe_codegen_profile(self.operator),
            **self.fields(kernel),
        )
        return self.header().getvalue() + body


def lower_to_loops(template: type[LoopTemplate], operands: Sequence[Any], size: Sequence[Any]) -> IRNode:
    """What the loops make of operands, the first one's device theirs: float32 of this size, dense."""
    strides = FlexibleLayout.contiguous_strides(size)
    layout = FixedLayout(operands[0].get_device(), torch.float32, list(size), strides)
    out = template(operands, layout).generate().output_node()
    out.data.data.allow_epilogue_fusion = False  # the loops compute this and nothing after it
    return out


def fixed(size: Any) -> int:
    """A size that the loops are compiled for."""
    return int(V.graph.sizevars.guard_int(size))


def start(kernel: Any, operand: Any) -> str:
    """An operand's first number."""
    return kernel.index(operand, ["0"] * len(operand.get_size()))
