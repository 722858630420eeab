"""Profiles a decode step, kernel by kernel.

`python -m qfpass.tools.bench.profile` runs the profiler in a process of its own. Inductor marks its C++
kernels for the profiler only if an option asks for it.
"""

from dataclasses import asdict
from typing import Any

import torch
from torch.profiler import ProfilerActivity
from torch.profiler import profile as record

from .fresh import answer, arguments, in_fresh_process
from .record import Figure
from .setup import Setup

STEPS = 20
SMALLEST = 0.005  # of the whole: smaller kernels are shown as one


def profile(setup: Setup, slots: int) -> list[Figure]:
    """Milliseconds of a step by kernel, the longest first."""
    found = in_fresh_process("profile", {"setup": asdict(setup), "slots": slots})
    where: dict[str, Any] = {
        "dtype": setup.dtype,
        "batch": 1,
        "tokens": 2 * slots,
        "slots": slots,
    }
    return [
        Figure("profile", f"{name} x {calls:g}", unit="ms", value=ms, samples=STEPS, **where)
        for name, calls, ms in found["kernels"]
    ]


@torch.no_grad()
def measure(setup: Setup, slots: int) -> dict[str, Any]:
    """Name, calls per step and milliseconds per step of every kernel, without what it calls."""
    model = setup.load()
    marked = {"options": {"cpp.enable_kernel_profile": True}} if setup.backend == "inductor" else {}
    context = setup.bounded(model, slots, 2 * slots, "qfpass", **marked).after(2 * slots, 1)
    ids = torch.zeros(1, 1, dtype=torch.long, device=setup.place)
    for _ in range(5):
        context.read(ids)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setup.device == "cuda" else [])]
    with record(activities=activities) as recorded:
        for _ in range(STEPS):
            context.read(ids)
    return {"kernels": _kernels(recorded, "device" if setup.device == "cuda" else "cpu")}


def _kernels(recorded: Any, side: str) -> list[tuple[str, float, float]]:
    times = [
        (event.key, event.count / STEPS, getattr(event, f"self_{side}_time_total") / 1000 / STEPS)
        for event in recorded.key_averages()
    ]
    times.sort(key=lambda each: -each[2])
    whole = sum(ms for *_, ms in times)
    shown = [each for each in times if each[2] >= SMALLEST * whole]
    rest = [each for each in times if each[2] < SMALLEST * whole]
    return [*shown, ("all smaller", sum(n for _, n, _ in rest), sum(ms for *_, ms in rest))]


if __name__ == "__main__":
    asked = arguments()
    asked["setup"] = Setup(**asked["setup"])
    answer(measure(**asked))
