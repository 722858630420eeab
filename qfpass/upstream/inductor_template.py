"""Our own C++ loops in Inductor's CPU code, compiled as its generated loops are.

This module imports Inductor at once, so only `inductor.lower_to_own_loops` and what it calls may import it.
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
    """A C++ source that Inductor renders for given operands, some of which may be None.

    Attributes:
        operator: a name for what the loops compute, shown by the profiler.
        source: a Jinja template of `name`, `definition`, `profile` and the variables from `fields`.
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
        """The names of the kernel's parameters, one per operand."""

    @abstractmethod
    def fields(self, kernel: Any) -> dict[str, Any]:
        """The source's own variables: sizes, strides and addresses."""

    def render(self, **asked: Any) -> str:
        """The C++ source with all variables filled in; Inductor calls it."""
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
    """C++ that marks the kernel for the profiler, under the name `operator` from torch 2.13 on."""
    mark = kernel.maybe_codegen_profile
    return mark(operator) if signature(mark).parameters else mark()


def lower_to_loops(template: type[LoopTemplate], operands: Sequence[Operand], size: Sequence[Any]) -> IRNode:
    """The output of a template's loops: contiguous float32 of this size, on the first operand's device."""
    strides = FlexibleLayout.contiguous_strides(size)
    layout = FixedLayout(operands[0].get_device(), torch.float32, list(size), strides)
    with _sizes_of_trial():
        out = template(operands, layout).generate().output_node()
    V.graph.no_fuse_buffer_names.add(out.get_name())  # the loops compute this and nothing after it
    return out


def _sizes_of_trial() -> AbstractContextManager[Any]:
    """A context in which a template can be generated although some sizes are known only at run time.

    Inductor asks for example sizes for a trial that is never run. In torch 2.11 they need a fallback.
    """
    sizes: Any = V.graph.sizevars
    if hasattr(sizes, "size_hints"):
        return patch.object(sizes, "size_hints", partial(sizes.size_hints, fallback=1))
    return nullcontext()


def realized(operand: Operand) -> Operand:
    """The operand, realised: computed and stored before the loops run."""
    return realize_inputs(operand)


def as_contiguous(operand: Operand) -> Operand:
    """The operand, realised and contiguous; a realised vector may still have gaps between its elements."""
    return ExternKernel.require_contiguous(realized(operand))


def as_contiguous_rows(operand: Operand) -> Operand:
    """The matrix with contiguous rows: itself if its layout is fixed and has them, else made contiguous."""
    operand = realized(operand)
    layout = operand.maybe_get_layout()
    if isinstance(layout, FixedLayout) and V.graph.sizevars.statically_known_equals(layout.stride[1], 1):
        return operand
    return as_contiguous(operand)


def static_size(size: Any) -> int:
    """The size as an int that the loops are compiled for; guards on it."""
    return int(V.graph.sizevars.guard_int(size))


def first_element(kernel: Any, operand: Operand) -> str:
    """The C++ expression for an operand's first element."""
    return kernel.index(operand, ["0"] * len(operand.get_size()))


def register(operator: torch._ops.OpOverload, lower: Lower) -> None:
    """Register `lower` for an operator; if it raises, our loops are given up and the operator is called."""
    call = fallback_handler(operator, add_to_fallback_set=False)

    def lower_or_call(*operands: Any) -> Any:
        if lower_to_own_loops.failure is None:
            try:
                return lower(*operands)
            except Exception as error:  # a changed Inductor may raise anything
                lower_to_own_loops.give_up(error)
        return call(*operands)

    register_lowering(operator, type_promotion_kind=None)(lower_or_call)
