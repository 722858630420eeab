"""PNG plots of an evaluation: heat maps for needles, bar charts for the others. Needs matplotlib."""

from pathlib import Path
from typing import Any

from ...errors import InputError
from .report import Evaluation, ResultRow


def require_matplotlib() -> None:
    """Raise InputError where plots can't be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise InputError(
            "plots need matplotlib: pip install 'qfpass[evaluate]', or pass --no-plot."
        ) from None


def plot(evaluation: Evaluation, folder: str | Path) -> Path:
    """Write `<kind>.png` into `folder`, created if it is missing; returns the file's path.

    Raises:
        InputError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    path = Path(folder).expanduser() / f"{evaluation.kind}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(3.4 * max(2, len(evaluation.rows)), 4.2), layout="constrained")
    if evaluation.kind == "needle":
        _heat_maps(figure, evaluation.rows)
    else:
        names = list(evaluation.rows[0].measures)
        # RULER's tasks share a scale; other measures have one each.
        groups = [names] if evaluation.kind == "ruler" else [[name] for name in names]
        _bars(figure, evaluation.rows, groups)
    figure.suptitle(f"{evaluation.kind}: {evaluation.model}")
    figure.savefig(path, dpi=120)
    return path


def _heat_maps(figure: Any, rows: tuple[ResultRow, ...]) -> None:
    """One map a row: depth down, length across, share of digits or words found as colour and number."""
    panels = figure.subplots(1, len(rows), squeeze=False)[0]
    for panel, row in zip(panels, rows, strict=True):
        grid = row.details["grid"]
        image = panel.imshow(grid["partial"], vmin=0, vmax=1, aspect="auto", cmap="RdYlGn")
        panel.set_xticks(range(len(grid["lengths"])), [str(n) for n in grid["lengths"]])
        panel.set_yticks(range(len(grid["depths"])), [f"{100 * d:.0f}%" for d in grid["depths"]])
        for y, line in enumerate(grid["partial"]):
            for x, share in enumerate(line):
                panel.text(x, y, f"{share:.2f}", ha="center", va="center", fontsize=7)
        panel.set_title(row.name, fontsize=9)
        panel.set_xlabel("tokens")
    panels[0].set_ylabel("depth")
    figure.colorbar(image, ax=list(panels), label="share found")


def _bars(figure: Any, rows: tuple[ResultRow, ...], groups: list[list[str]]) -> None:
    """A panel a group of measures of one scale: bars side by side, a colour a row."""
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    width = 0.8 / len(rows)
    for panel, names in zip(panels, groups, strict=True):
        for i, row in enumerate(rows):
            means = [row.measures[name][0] for name in names]
            errors = [row.measures[name][1] or 0.0 for name in names]
            places = [place + i * width for place in range(len(names))]
            panel.bar(places, means, width, yerr=errors, capsize=2, label=row.name)
        middles = [place + 0.4 - width / 2 for place in range(len(names))]
        panel.set_xticks(middles, names, rotation=30, ha="right")
    panels[0].legend(fontsize=8)
