"""`qfpass bench`: what a bounded decoder costs beside transformers' own caches."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ...errors import ConfigError
from ..evaluate.plots import require_matplotlib
from ..options import Device, Score
from .plots import plot
from .record import Record
from .run import CONTENDERS, MEASURES, QUICK, Measurements, Workload
from .setup import Setup

ModelName = Annotated[
    str | None,
    typer.Argument(
        metavar="[MODEL]", help="A folder or a hub name; without it the plots of --out are drawn again."
    ),
]
Measures = Annotated[
    list[str] | None, typer.Option("--measure", help=f"{', '.join(MEASURES)}; repeatable; by default all.")
]
Dtypes = Annotated[
    list[str] | None, typer.Option("--dtype", help="float32, bfloat16; repeatable; else float32.")
]
Numbers = list[int] | None
Tokens = Annotated[
    Numbers,
    typer.Option("--seen", min=2, help="Tokens already seen; repeatable; else 512 to 65536."),
]
Static = Annotated[
    Numbers, typer.Option("--static", min=2, help="Lengths at which StaticCache is compiled; repeatable.")
]
Slots = Annotated[Numbers, typer.Option("--slots", min=2, help="Slots a head; the first is compared.")]
Batches = Annotated[Numbers, typer.Option("--batch", min=1, help="Rows; repeatable.")]
Whole = Annotated[Numbers, typer.Option("--whole", min=2, help="Tokens of the prompts to read; repeatable.")]
Without = Annotated[
    list[str] | None,
    typer.Option("--without", help=f"Leave one out: {', '.join(CONTENDERS)}; repeatable."),
]
Rounds = Annotated[int | None, typer.Option(min=1, help="Measure each at most so often.")]
Seconds = Annotated[float | None, typer.Option(min=0, help="Seconds after which no new round begins.")]
Filters = Annotated[str | None, typer.Option(help="Q-Filters: a folder or hub name; else found or made.")]
Mode = Annotated[str | None, typer.Option(help="torch.compile's mode; by default its own.")]
Backend = Annotated[str, typer.Option(help="torch.compile's backend.")]
Out = Annotated[Path, typer.Option(help="Where the JSON records and the PNG plots go.")]
Quick = Annotated[bool, typer.Option(help="Only a few small sizes.")]
Plot = Annotated[bool, typer.Option("--plot/--no-plot", help="Draw the PNGs.")]


def run_bench(
    model: ModelName = None, measure: Measures = None, dtype: Dtypes = None, tokens: Tokens = None,
    static: Static = None, slots: Slots = None, batch: Batches = None, whole: Whole = None,
    without: Without = None, rounds: Rounds = None,
    seconds: Seconds = None, score: Score = "published",
    filters: Filters = None, mode: Mode = None, backend: Backend = "inductor", device: Device = "cpu",
    out: Out = Path("qfpass-bench"), quick: Quick = False, drawn: Plot = True,
) -> None:  # fmt: skip
    """Time and memory beside transformers' caches; a table and plots of all that --out holds."""
    if drawn:
        require_matplotlib()
    console = Console()
    chosen = _known("measure", measure, tuple(MEASURES))
    left_out = _known("contender", without or [], CONTENDERS)
    sizes = _sizes(
        QUICK if quick else Workload(), tokens=tokens, static=static, slots=slots, batches=batch, whole=whole,
        rounds=rounds, seconds=seconds,
    )  # fmt: skip
    kept = tuple(kind for kind in CONTENDERS if kind not in left_out)
    for each in (dtype or ["float32"]) if model is not None else []:
        assert model is not None
        run = Measurements(Setup(model, each, device, score, filters, backend, mode), sizes, kept)
        for name in chosen:
            figures = []
            for figure in MEASURES[name](run):
                figures.append(figure)
                console.print(f"{name}: {figure.contender}, {figure.tokens} tokens", markup=False)
                _save(Record(tuple(figures), run.settings), out / f"{name}-{each}.json")
    record = Record.join(out)
    print(record)
    if drawn:
        console.print("written: " + ", ".join(map(str, plot(record, out))), soft_wrap=True)


def _known(what: str, names: list[str] | None, known: tuple[str, ...]) -> list[str]:
    if unknown := sorted(set(names or []) - set(known)):
        raise ConfigError(f"no {what} is called {', '.join(unknown)}: choose from {', '.join(known)}.")
    return list(known) if names is None else names


def _sizes(default: Workload, **given: Any) -> Workload:
    told: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None
    }
    if "tokens" in told:
        told["tokens"] = tuple(sorted(told["tokens"]))
    return replace(default, **told)


def _save(record: Record, path: Path) -> None:
    try:
        record.save(path)
    except OSError as error:
        raise ConfigError(f"can't write {path} ({error}): give another --out.") from error
