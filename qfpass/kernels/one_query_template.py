"""Inductor's lowering of `attend_one` on processors, to the loops of `one_query.cpp`."""

from typing import Any

from ..upstream.inductor_template import LoopTemplate, fixed, in_memory, lower_to_loops, start
from .one_query_op import SOURCE
from .streams import STREAMS


class AttendOne(LoopTemplate):
    """Scales may be missing."""

    operator, source = "attend_one", SOURCE
    operand_names = ("query_", "key_", "value_", "key_scale_", "value_scale_")

    def fields(self, kernel: Any) -> dict[str, Any]:
        query, key, value, *scales = self.operands
        return {
            "streams": STREAMS, "dtype": kernel.dtype(key),
            "batch": kernel.size(query, 0), "heads": fixed(query.get_size()[1]),
            "group": fixed(query.get_size()[2]), "dim": fixed(key.get_size()[3]),
            "value_dim": fixed(value.get_size()[3]), "slots": kernel.size(key, 2),
            "query": start(kernel, query), "key": start(kernel, key), "value": start(kernel, value),
            "key_strides": _strides(kernel, key), "value_strides": _strides(kernel, value),
            "key_scale": _address(kernel, scales[0]), "value_scale": _address(kernel, scales[1]),
            "scale_strides": [_strides(kernel, scale) for scale in scales],
        }  # fmt: skip


def _strides(kernel: Any, operand: Any) -> list[str]:
    if operand is None:
        return ["0"] * 2
    return [kernel.stride(operand, dim) for dim in range(len(operand.get_size()) - 1)]


def _address(kernel: Any, scale: Any) -> str:
    return "nullptr" if scale is None else f"&{start(kernel, scale)}"


def lower_attend_one(query: Any, key: Any, value: Any, key_scale: Any, value_scale: Any) -> Any:
    operands = [None if x is None else in_memory(x) for x in (query, key, value, key_scale, value_scale)]
    return lower_to_loops(AttendOne, operands, [*query.get_size()[:3], value.get_size()[3] + 1])
