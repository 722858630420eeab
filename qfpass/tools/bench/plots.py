"""PNG plots of a record, one a question. Needs matplotlib."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..evaluate.plots import require_matplotlib
from .record import Figure, Record

ELSEWHERE = ("q4_1",)  # formats of other programs, drawn beside every dtype
STYLES = ("o-", "s-", "^-", "D-", "v-", "P-", "X-", "*-")


def plot(record: Record, folder: Path) -> list[Path]:
    """Write `<measure>-<dtype>.png` for all that the record holds; returns the files' paths.

    Raises:
        InputError: matplotlib is not installed.
    """
    require_matplotlib()
    written = []
    for measure, draw in PLOTS.items():
        figures = record.of(measure)
        for dtype in dict.fromkeys(f.dtype for f in figures if f.dtype not in ELSEWHERE):
            own = [f for f in figures if f.dtype in (dtype, *ELSEWHERE) and f.unit != "GB/s"]
            if own:
                path = folder / f"{measure.replace(' ', '-')}-{dtype}.png"
                written.append(_save(path, f"{measure}, {dtype}", draw, own))
    return written


def _save(path: Path, title: str, draw: Callable[[Any, Sequence[Figure]], None], own: list[Figure]) -> Path:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(7.5, 4.5), layout="constrained")
    panel = canvas.subplots()
    draw(panel, own)
    panel.set_title(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=80)
    return path


def _over_tokens(panel: Any, figures: Sequence[Figure]) -> None:
    """A line a contender and batch, with quartiles; bytes bounds dotted in the same colour."""
    several = len({f.batch for f in figures}) > 1
    lines = dict.fromkeys((f.contender, f.batch) for f in figures)
    for style, (name, batch) in zip(STYLES * len(lines), lines, strict=False):
        own = sorted((f for f in figures if (f.contender, f.batch) == (name, batch)), key=lambda f: f.tokens)
        places, values = [f.tokens for f in own], [f.value for f in own]
        errors = [
            [abs(f.value - (f.value if end is None else end)) for f, end in zip(own, ends, strict=True)]
            for ends in ([f.lower for f in own], [f.upper for f in own])
        ]
        label = f"{name}, batch {batch}" if several else name
        bars = panel.errorbar(places, values, yerr=errors, fmt=style, markersize=4, capsize=2, label=label)
        bounds = [(f.tokens, f.bound) for f in own if f.bound is not None]
        if len(bounds) > 1 and not several:
            panel.plot(*zip(*bounds, strict=True), ":", color=bars[0].get_color(), linewidth=1)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.set_xlabel("tokens seen" + ("" if several else " (dotted: bytes bound)"))
    panel.set_ylabel(figures[0].unit)
    panel.grid(which="both", alpha=0.3)
    panel.legend(fontsize=7)


def _bars(panel: Any, figures: Sequence[Figure]) -> None:
    """A bar a contender, the first on top."""
    names = [f.contender[:60] for f in figures]
    places = range(len(names))
    panel.barh(places, [f.value for f in figures])
    panel.set_yticks(places, names, fontsize=7)
    panel.invert_yaxis()
    for place, figure in zip(places, figures, strict=True):
        panel.text(figure.value, place, f" {figure.value:.1f}", va="center", fontsize=7)
    panel.set_xlabel(figures[0].unit)


PLOTS: dict[str, Callable[[Any, Sequence[Figure]], None]] = {
    "decode": _over_tokens,
    "steady": _over_tokens,
    "chunk": _over_tokens,
    "prefill": _over_tokens,
    "long prefill": _over_tokens,
    "memory": _bars,
    "profile": _bars,
}
