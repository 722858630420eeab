"""Inductor for the device of `host_device`: C++ that reads its memory as the processor's own."""

from functools import cache
from typing import Any

import torch
from host_device import NAME
from torch._dynamo.device_interface import CpuInterface, register_interface_for_device
from torch._inductor.codegen.common import register_backend_for_device, register_device_op_overrides
from torch._inductor.codegen.cpp import CppScheduling
from torch._inductor.codegen.cpu_device_op_overrides import CpuDeviceOpOverrides
from torch._inductor.codegen.wrapper import PythonWrapperCodegen

# Its C++ is for the processor alone: what Inductor would do with a GPU's loops is turned off.
OPTIONS = {
    "cuda_backend": "cpp", "loop_reindexing_after_fusion": False, "loop_ordering_after_fusion": False,
}  # fmt: skip


class _Wrapper(PythonWrapperCodegen):
    """Code that allocates on the card that a tensor names, and calls C++ as on the processor."""

    @staticmethod
    def create(is_subgraph: bool, *rest: Any) -> PythonWrapperCodegen:
        return PythonWrapperCodegen.create(is_subgraph, *rest) if is_subgraph else _Wrapper()

    def make_allocation(self, name: str, device: torch.device, *rest: Any, **settings: Any) -> str:
        line: str = super().make_allocation(name, device, *rest, **settings)
        return line.replace(f"device='{device.type}'", f"device='{device}'")

    def _generate_kernel_call_helper(self, *args: Any, device: object = None, **settings: Any) -> None:
        super()._generate_kernel_call_helper(*args, device=torch.device("cpu"), **settings)


@cache
def host_inductor() -> None:
    """Register it; the second call does nothing."""
    register_backend_for_device(NAME, CppScheduling, _Wrapper)
    register_device_op_overrides(NAME, CpuDeviceOpOverrides())
    register_interface_for_device(NAME, CpuInterface)
