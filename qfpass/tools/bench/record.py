"""Measured figures, which are saved as JSON, joined over files and shown as tables."""

import json
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from ...errors import InputError
from ..evaluate.report import versions
from .timing import Timing

WIDE = 500  # columns, so that no figure is cut short


@dataclass(frozen=True)
class Figure:
    """One measured number and where it was taken.

    Attributes:
        measure: "decode", "steady", "chunk", "prefill", "memory", "compile" or "profile".
        contender: what was measured.
        tokens: tokens seen before.
        unit: of `value`, `lower`, `upper` and `bound`: "ms", "tokens/s", "s", "MiB", "GB/s" or "graphs".
        value: the median of `samples`; `lower` and `upper` are the quartiles.
        slots: slots a head; None if every key is kept.
        bound: what reading the weights and the filled store once would take at the run's bandwidth.
    """

    measure: str
    contender: str
    dtype: str
    batch: int
    tokens: int
    unit: str
    value: float
    lower: float | None = None
    upper: float | None = None
    samples: int = 1
    slots: int | None = None
    bound: float | None = None

    @classmethod
    def of_time(cls, timing: Timing, **where: Any) -> "Figure":
        """A figure in milliseconds; `where` are its other attributes."""
        median, lower, upper = (1000 * t for t in (timing.median, timing.lower, timing.upper))
        return cls(unit="ms", value=median, lower=lower, upper=upper, samples=timing.samples, **where)


@dataclass(frozen=True)
class Record:
    """The figures of one run, or of several joined."""

    figures: tuple[Figure, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write the record as JSON; its folder is created if it is missing."""
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"settings": self.settings, "versions": versions(), "machine": machine()}
        path.write_text(json.dumps({"figures": [asdict(f) for f in self.figures], **about}, indent=1) + "\n")

    @classmethod
    def join(cls, folder: Path) -> "Record":
        """The figures of every `*.json` in a folder, in the order of the files' names.

        Raises:
            InputError: a file there is no record of figures.
        """
        figures: list[Figure] = []
        for path in sorted(folder.glob("*.json")):
            try:
                figures += [Figure(**each) for each in json.loads(path.read_text())["figures"]]
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{path} holds no benchmark figures ({error}): move it away.") from error
        return cls(tuple(figures))

    def of(self, measure: str, **where: Any) -> list[Figure]:
        """The figures of a measure that have these attributes."""
        wanted = {"measure": measure, **where}
        return [f for f in self.figures if all(getattr(f, k) == v for k, v in wanted.items())]

    def tables(self) -> Iterable[Table]:
        """One table a measure."""
        for measure in dict.fromkeys(f.measure for f in self.figures):
            yield _table(measure, self.of(measure))

    def __str__(self) -> str:
        console = Console(width=WIDE)
        with console.capture() as captured:
            for table in self.tables():
                console.print(table)
        return captured.get().rstrip()


def machine() -> dict[str, Any]:
    """The hardware that the figures were taken on, without its host name."""
    found: dict[str, Any] = {"cores": os.cpu_count(), "torch_threads": torch.get_num_threads()}
    found["processor"] = _processor()
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor())


def _table(measure: str, figures: list[Figure]) -> Table:
    table = Table(title=measure)
    for column in ("dtype", "batch", "tokens", "slots"):
        table.add_column(column, justify="right")
    table.add_column("contender")
    for column in ("median", "quartiles", "unit", "samples", "bytes bound", "of the bound"):
        table.add_column(column, justify="right", no_wrap=True)
    for f in figures:
        spread = "" if f.lower is None or f.upper is None else f"{f.lower:.1f} to {f.upper:.1f}"
        bound = ("", "") if f.bound is None else (f"{f.bound:.1f}", f"{f.value / f.bound:.2f}x")
        slots = "all" if f.slots is None else str(f.slots)
        place = (f.dtype, str(f.batch), str(f.tokens), slots, f.contender)
        table.add_row(*place, f"{f.value:.1f}", spread, f.unit, str(f.samples), *bound)
    return table
