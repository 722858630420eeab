"""Lower `attend_one` in Inductor, on processors, to the loops in `loops.cpp`."""

from typing import Any

import torch

from ....upstream.inductor_template import LoopTemplate, first_element, lower_to_loops, realized, static_size
from ..streams import STREAMS
from .op import SOURCE


class AttendOne(LoopTemplate):
    """The loops of `attend_one`; the scales may be None."""

    operator, source = "attend_one", SOURCE
    operand_names = ("query_", "key_", "value_", "key_scale_", "value_scale_")

    def fields(self, kernel: Any) -> dict[str, Any]:
        query, key, value, *scales = self.operands
        return {
            "streams": STREAMS, "dtype": kernel.dtype(key), "is_packed": _is_packed(value),
            "batch": kernel.size(query, 0), "heads": static_size(query.get_size()[1]),
            "group": static_size(query.get_size()[2]), "dim": static_size(key.get_size()[3]),
            "value_dim": _numbers(value), "slots": kernel.size(key, 2),
            "query": first_element(kernel, query), "key": first_element(kernel, key),
            "value": first_element(kernel, value),
            "key_strides": _strides(kernel, key), "value_strides": _strides(kernel, value),
            "key_scale": _address(kernel, scales[0]), "value_scale": _address(kernel, scales[1]),
            "scale_strides": [_strides(kernel, scale) for scale in scales],
        }  # fmt: skip


def _is_packed(value: Any) -> bool:
    return bool(value.get_dtype() == torch.uint8)


def _numbers(value: Any) -> int:
    """The size of a value, which may be packed in four bits."""
    return int(static_size(value.get_size()[3])) * (2 if _is_packed(value) else 1)


def _strides(kernel: Any, operand: Any) -> list[str]:
    if operand is None:
        return ["0"] * 3
    return [kernel.stride(operand, dim) for dim in range(3)]


def _address(kernel: Any, scale: Any) -> str:
    return "nullptr" if scale is None else f"&{first_element(kernel, scale)}"


def lower_attend_one(query: Any, key: Any, value: Any, key_scale: Any, value_scale: Any) -> Any:
    """Inductor's node for the result [B, Hkv, G, Dv + 1] of `attend_one`."""
    operands = [None if x is None else realized(x) for x in (query, key, value, key_scale, value_scale)]
    return lower_to_loops(AttendOne, operands, [*query.get_size()[:3], _numbers(value) + 1])
