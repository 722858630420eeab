"""Loops of our own in Inductor's code for processors: a C++ source, compiled as its own loops are.

This imports Inductor's parts at once, so only `inductor.lower_to_own_loops` and what it calls may import it.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from inspect import signature
from typing import Any, ClassVar
from unittest.mock import patch

import torch
import torch._inductor.lowering  # before templates, which it imports and which import it
from torch._inductor.codegen.cpp_template import CppTemplate
from torch._inductor.ir import ExternKernel, FixedLayout, FlexibleLayout, IRNode
from torch._inductor.lowering import fallback_handler, register_lowering
from torch._inductor.select_algorithm import realize_inputs
from torch._inductor.utils import parallel_num_threads
from torch._inductor.virtualized import V

from .inductor import Lower, lower_to_own_loops

Operand = Any
"""A tensor in Inductor's own graph, or None."""


class LoopTemplate(CppTemplate, ABC):
    """A source with operands filled in, of which some may be missing.

    Attributes:
        operator: the name of what the loops compute.
        source: a Jinja template, given `name`, `definition`, `profile` and what `fields` gives.
    """

    operator: ClassVar[str]
    source: ClassVar[str]

    def __init__(self, operands: Sequence[Operand], layout: FixedLayout) -> None:
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
            definition=definition,
            profile=_profile(kernel, self.operator),
            **self.fields(kernel),
        )
        return self.header().getvalue() + body


def _profile(kernel: Any, operator: str) -> str:
    """What marks the kernel for the profiler, by its name where it can be given one (from torch 2.13 on)."""
    mark = kernel.maybe_codegen_profile
    return mark(operator) if signature(mark).parameters else mark()


def lower_to_loops(template: type[LoopTemplate], operands: Sequence[Operand], size: Sequence[Any]) -> IRNode:
    """What the loops make of operands, the first one's device theirs: float32 of this size, dense."""
    strides = FlexibleLayout.contiguous_strides(size)
    layout = FixedLayout(operands[0].get_device(), torch.float32, list(size), strides)
    with _sizes_of_trial():
        out = template(operands, layout).generate().output_node()
    V.graph.no_fuse_buffer_names.add(out.get_name())  # the loops compute this and nothing after it
    return out


def _sizes_of_trial() -> AbstractContextManager[Any]:
    """Inside, a template may be generated though sizes are known only at run time.

    It gets arguments for a trial, which nobody makes; torch 2.11 has none then.
    """
    sizes: Any = V.graph.sizevars
    if hasattr(sizes, "size_hints"):
        return patch.object(sizes, "size_hints", partial(sizes.size_hints, fallback=1))
    return nullcontext()


def in_memory(operand: Operand) -> Operand:
    """The operand, computed by now."""
    return realize_inputs(operand)


def dense(operand: Operand) -> Operand:
    """The operand without gaps: of those as dense as a template wants them, a vector may still have some."""
    return ExternKernel.require_contiguous(in_memory(operand))


def as_rows(operand: Operand) -> Operand:
    """A matrix whose rows' numbers lie together; one that is computed may lie in any order."""
    operand = in_memory(operand)
    layout = operand.maybe_get_layout()
    if isinstance(layout, FixedLayout) and V.graph.sizevars.statically_known_equals(layout.stride[1], 1):
        return operand
    return dense(operand)


def fixed(size: Any) -> int:
    """A size that the loops are compiled for."""
    return int(V.graph.sizevars.guard_int(size))


def start(kernel: Any, operand: Operand) -> str:
    """An operand's first number."""
    return kernel.index(operand, ["0"] * len(operand.get_size()))


def register(operator: torch._ops.OpOverload, lower: Lower) -> None:
    """Let Inductor lower an operator so; where that fails, loops are given up and the operator is called."""
    call = fallback_handler(operator, add_to_fallback_set=False)

    def lower_or_call(*operands: Any) -> Any:
        if lower_to_own_loops.failure is None:
            try:
                return lower(*operands)
            except Exception as error:  # whatever Inductor raises of a template that it has outgrown
                lower_to_own_loops.give_up(error)
        return call(*operands)

    register_lowering(operator, type_promotion_kind=None)(lower_or_call)
