"""The record of an evaluation: uncompressed first, budgets in slots and bytes, samples and spread."""

import importlib.metadata
import json
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table

from ...errors import InputError
from .footprint import Footprint
from .text_reader import Model

FIRST = "uncompressed"
WIDE = 500  # columns, so that no figure is cut short
MANY = 5  # measures beyond which a table is turned, to fit a terminal
PACKAGES = ("qfpass", "torch", "transformers", "wonderwords")

Measures = dict[str, tuple[float, float | None]]  # name -> mean, standard error (None: of one sample)


class Result(Protocol):
    """The result of evaluating one model: a dataclass whose fields can be written as JSON."""

    @property
    def footprint(self) -> Footprint:
        """The slots and bytes that the model held."""

    @property
    def samples(self) -> int:
        """How many samples the measures rest on."""

    def measures(self) -> Measures:
        """The figures to report, the most telling first."""


@dataclass(frozen=True)
class ResultRow:
    """One model's figures; `details` holds every sample."""

    name: str
    footprint: Footprint
    samples: int
    measures: Measures
    details: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of several models; print it for a table.

    Attributes:
        kind: "perplexity", "needle", "ruler" or "generation".
        model: the model's name.
        rows: the uncompressed model, then the others.
        settings: all that the figures depend on, the seed among it.
        versions: of Python and the packages.

    Raises:
        InputError: no rows, or another row before the uncompressed one.
    """

    kind: str
    model: str
    rows: tuple[ResultRow, ...]
    settings: dict[str, Any]
    versions: dict[str, str]

    def __post_init__(self) -> None:
        if not self.rows or self.rows[0].name != FIRST:
            raise InputError(f"an evaluation's first row must be {FIRST!r}: run that model first.")

    def save(self, folder: str | Path) -> Path:
        """Write `<kind>.json` into `folder`, created if it is missing; returns the file's path."""
        path = Path(folder).expanduser() / f"{self.kind}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(_finite(asdict(self)), indent=1) + "\n")
        return path

    def __rich__(self) -> Table:
        table = Table(title=f"{self.kind}: {self.model}")
        names = list(dict.fromkeys(name for row in self.rows for name in row.measures))
        cells = [["method", "slots", "MiB a row", "samples", *names]]
        for row in self.rows:
            slots = "all" if row.footprint.slots is None else str(row.footprint.slots)
            figures = [_figure(row.measures.get(name)) for name in names]
            budget = [row.name, slots, f"{row.footprint.nbytes / 2**20:.2f}", str(row.samples)]
            cells.append([*budget, *figures])
        if len(names) > MANY:  # a method a column
            cells = [list(line) for line in zip(*cells, strict=True)]
        for column in cells[0]:
            table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
        for line in cells[1:]:
            table.add_row(*line)
        table.caption = "mean ± standard error; seed " + str(self.settings.get("seed"))
        return table

    def __str__(self) -> str:
        console = Console(width=WIDE)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip()


def compare(
    kind: str,
    model_name: str,
    models: Mapping[str, Model],
    run: Callable[[Model], Result],
    settings: Mapping[str, Any],
) -> Evaluation:
    """The evaluation of all `models`: calls `run` on each; the first one's name must be "uncompressed"."""
    if next(iter(models), None) != FIRST:
        raise InputError(f"the first model must be {FIRST!r}: see qfpass.tools.evaluate.with_methods.")
    rows = []
    for name, model in models.items():
        result = run(model)
        rows.append(
            ResultRow(name, result.footprint, result.samples, result.measures(), asdict(result))  # type: ignore
        )
    return Evaluation(kind, model_name, tuple(rows), dict(settings), versions())


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that figures depend on; those that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _figure(measure: tuple[float, float | None] | None) -> str:
    if measure is None:
        return ""
    mean, error = measure
    return f"{mean:.3f}" if error is None else f"{mean:.3f} ± {error:.3f}"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: those become None."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
