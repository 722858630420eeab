"""A device of two cards in the processor's own memory, whose operators refuse operands of both."""

import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.utils import cpp_extension
from torch.utils.dlpack import DLDeviceType

NAME = "host"
CARDS = (f"{NAME}:0", f"{NAME}:1")

needs_ninja = pytest.mark.skipif(
    not cpp_extension.is_ninja_available(), reason="ninja isn't installed, which torch compiles C++ by"
)


class _Host(ModuleType):
    """What torch asks of a device's module."""

    def __init__(self, compiled: Any) -> None:
        super().__init__(f"torch.{NAME}")
        self.current_device, self.set_device = compiled.current, compiled.choose

    def device_count(self) -> int:
        return len(CARDS)

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        """Random numbers are the processor's."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


@cache
def host_device() -> None:
    """Compile and register the device; the second call does nothing."""
    source = Path(__file__).with_suffix(".cpp")
    compiled = cpp_extension.load("qfpass_host_device", [str(source)], extra_cflags=["-O0"])
    torch.utils.rename_privateuse1_backend(NAME)
    host = _Host(compiled)
    torch._register_device_module(NAME, host)
    sys.modules[f"torch.{NAME}"] = host
    compiled.register_hooks()
    torch.utils.generate_methods_for_privateuse1_backend()
    known = torch.Tensor.__dlpack_device__

    def dlpack_device(tensor: torch.Tensor) -> Any:  # torch's own doesn't know the device by its name
        return (DLDeviceType.kDLExtDev, tensor.device.index) if tensor.device.type == NAME else known(tensor)

    torch.Tensor.__dlpack_device__ = dlpack_device  # type: ignore[method-assign, assignment]


def in_a_process(scenarios: Sequence[Callable[[Path], None]], folder: Path) -> None:
    """Run each scenario, given the folder, in one new process: torch never forgets such a device."""
    torch.multiprocessing.spawn(_run, (scenarios, folder))


def _run(_: int, scenarios: Sequence[Callable[[Path], None]], folder: Path) -> None:
    torch.set_num_threads(1)
    host_device()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QFPASS_CACHE", str(folder / "cache"))
        for scenario in scenarios:
            scenario(folder)
