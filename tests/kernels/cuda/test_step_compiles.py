"""The Triton kernels as they are compiled for an H100, which takes no GPU: what a program holds and reads.

Run by `make triton`; Triton's interpreter, once it is on, compiles nothing.
"""

import importlib.util
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from qfpass.kernels.int4 import quantize_to_int4
from qfpass.store.int8_slots import quantize

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None or os.environ.get("TRITON_INTERPRET") == "1",
    reason="needs Triton, and not its interpreter: make triton",
)
A100_SHARED, REGISTERS = 163 * 1024, 65536  # bytes that two programs share, and a multiprocessor's registers


class H100:
    """A driver's part in compiling for a GPU that isn't here."""

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The kernels that a launch compiles, in their order; none is run."""
    import triton

    kernels: list[Any] = []
    run = triton.JITFunction.run

    def only_compile(self: Any, *args: Any, **kwargs: Any) -> None:
        kernels.append(run(self, *args, **(kwargs | {"warmup": True})))

    monkeypatch.setattr(triton.JITFunction, "run", only_compile)
    monkeypatch.setattr(triton.runtime.driver, "_active", H100())
    return kernels


def launched(dtype: torch.dtype, bits: str | None, group: int, dim: int, **form: Any) -> None:
    """A launch for a store of 1,024 slots of 8 heads, by tensors without memory."""
    from qfpass.kernels.cuda.step_attention.launch import launch

    query, key, value = (
        torch.empty(1, *shape, dim, dtype=dtype, device="meta")
        for shape in ((8 * group, 1), (8, 1024), (8, 1024))
    )
    scales: tuple[Any, Any] = None, None
    if bits:
        (key, key_scale), (value, value_scale) = (
            quantize(key), (quantize if bits == "int8" else quantize_to_int4)(value)
        )  # fmt: skip
        scales = key_scale, value_scale
    given: dict[str, Any] = {"bias": None, "lengths": None, "scale": 0.1, "softcap": None} | form
    launch(query, key, value, *scales, **given)


def resources(kernel: Any, folder: Path) -> tuple[int, int]:
    """Registers of a thread, and bytes of the memory that it spills them to."""
    import triton

    (folder / "kernel.cubin").write_bytes(kernel.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    said = subprocess.run(
        [tool, "--dump-resource-usage", folder / "kernel.cubin"], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    assert found, said
    return int(found[1]), int(found[2])


@pytest.mark.parametrize("dim", [64, 128, 256, 512])
@pytest.mark.parametrize("bits", [None, "int8", "int4"])
def test_two_programs_fit_and_copy_wide(
    bits: str | None, dim: int, compiled: list[Any], tmp_path: Path
) -> None:
    launched(torch.bfloat16, bits, group=4, dim=dim)
    part, joined = compiled
    registers, spilled = resources(part, tmp_path)
    assert spilled == 0
    assert 2 * registers * 32 * part.metadata.num_warps <= REGISTERS
    assert 2 * part.metadata.shared <= A100_SHARED
    ptx = part.asm["ptx"]
    assert re.search(r"cp\.async\.cg\.shared\.global .*, 0x10", ptx), "keys are copied in 16 bytes a thread"
    assert "mma.sync" in ptx
    assert resources(joined, tmp_path)[1] == 0


@pytest.mark.parametrize(
    ("dtype", "group", "dim", "form"),
    [
        (torch.float32, 1, 128, {}),
        (torch.float16, 71, 64, {}),
        (torch.bfloat16, 2, 80, {"softcap": 30.0, "bias": torch.empty(1, 16, 1, 1024, device="meta")}),
        (torch.bfloat16, 1, 16, {"lengths": torch.empty(1, dtype=torch.long, device="meta")}),
    ],
    ids=["float32", "many queries a head", "every term", "rows of their own"],
)
def test_other_forms_compile(
    dtype: torch.dtype, group: int, dim: int, form: dict[str, Any], compiled: list[Any]
) -> None:
    for bits in (None, "int8"):
        launched(dtype, bits, group, dim, **form)
    assert len(compiled) == 4 and all("cubin" in kernel.asm for kernel in compiled)


def test_a_filling_store_compiles_once(compiled: list[Any]) -> None:
    """Whatever the number of slots: a step that compiled would take a second."""
    from qfpass.kernels.cuda.step_attention.launch import launch

    store = torch.empty(1, 8, 1024, 64, dtype=torch.bfloat16, device="meta")
    query = torch.empty(1, 32, 1, 64, dtype=torch.bfloat16, device="meta")
    for slots in (1, 2, 15, 16, 17, 100, 1024):
        filled = store[:, :, :slots]
        launch(query, filled, filled, None, None, None, None, 0.1, None)
    assert len({kernel.hash for kernel in compiled if kernel.name == "attend_part"}) <= 2
