"""The command line: `qfpass serve`, `chat`, `check`, `evaluate`, `bench`, `tune` and others.

Needs typer: pip install 'qfpass[evaluate]'.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from ..errors import InputError, QFPassError
from ..filters import QFilters, TrainedFilters, load_filters, push_filters
from ..filters.calibrate import calibrate as calibrate_model
from ..training.train import train as train_filters
from ..training.tune import tune as tune_model
from . import evaluate
from .bench.command import run_bench
from .census.command import run_census
from .chat import run_chat
from .doctor import run_doctor
from .evaluate.check import check as check_model
from .evaluate.command import commands
from .evaluate.models import load_model, load_tokenizer
from .options import Data, Device, Dtype, ModelName, Progress, Seed
from .serve import run_serve

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Long contexts in a small, constant memory."
)


Lengths = Annotated[
    list[int] | None,
    typer.Option("--length", min=64, help="Tokens of a piece; repeat it to alternate; by default 1024."),
]

app.add_typer(commands, name="evaluate")
app.command("census")(run_census)
app.command("bench")(run_bench)
app.command("serve")(run_serve)
app.command("chat")(run_chat)
app.command("doctor")(run_doctor)


@app.command()
def check(
    model: ModelName,
    ratio: Annotated[float, typer.Option(help="How many times fewer bytes of keys and values.")] = 8.0,
    data: Annotated[Path | None, typer.Option(help="Your text; without it the model writes some.")] = None,
    tokens: Annotated[int, typer.Option("--length", min=64, help="Tokens of a text.")] = 1024,
    needles: Annotated[int, typer.Option(min=2, help="Facts to find.")] = 20,
    seed: Seed = 0, dtype: Dtype = "bfloat16", device: Device = "cpu", progress: Progress = True,
) -> None:  # fmt: skip
    """Measure what a ratio gives and costs on a model, beside its full cache."""
    original, tokenizer = load_model(model, dtype, device), load_tokenizer(model)
    text = None if data is None else evaluate.read_text(data)
    Console().print(
        check_model(
            original, tokenizer, ratio=ratio, text=text, tokens=tokens, needles=needles, seed=seed,
            progress=progress,
        )
    )  # fmt: skip


@app.command()
def calibrate(
    model: ModelName, data: Data, out: Annotated[Path, typer.Option(help="The filters' folder.")],
    sequences: Annotated[int, typer.Option(min=1, help="Pieces of text.")] = 20,
    tokens: Annotated[int, typer.Option("--length", min=2, help="Tokens of a piece.")] = 2048,
    context_length: Annotated[int | None, typer.Option(min=2, help="The longest text to come.")] = None,
    seed: Seed = 0, dtype: Dtype = "float32", device: Device = "cpu", progress: Progress = True,
) -> None:  # fmt: skip
    """Make Q-Filters of a model from a text."""
    original, tokenizer = load_model(model, dtype, device), load_tokenizer(model)
    rows = evaluate.token_rows(tokenizer, evaluate.read_text(data), tokens=tokens, rows=sequences, seed=seed)
    described = f"{sequences} x {tokens} tokens of {data.name}, seed {seed}"
    filters = calibrate_model(
        original, list(rows), sequence_length=tokens, context_length=context_length, description=described,
        progress=progress,
    )  # fmt: skip
    _save(filters, out)
    Console().print(f"Q-Filters of {len(filters.filters)} layers from {described}, in {out}")


@app.command()
def train(
    model: ModelName, data: Data, out: Annotated[Path, typer.Option(help="The filters' folder.")],
    ratio: Annotated[float, typer.Option(help="How many times smaller the store will be.")] = 8.0,
    steps: Annotated[int, typer.Option(min=1, help="Steps of gradient descent.")] = 700,
    lessons: Annotated[int, typer.Option(min=1, help="Pieces of text.")] = 80,
    tokens: Lengths = None,
    batch: Annotated[int, typer.Option(min=1, help="Pieces per step; use several on a GPU.")] = 1,
    seed: Seed = 0, dtype: Dtype = "bfloat16", device: Device = "cpu", progress: Progress = True,
) -> None:  # fmt: skip
    """Train filters of a model on a text, for `qfpass.compile(model, filters=OUT)`."""
    original, tokenizer = load_model(model, dtype, device), load_tokenizer(model)
    filters = train_filters(
        original, tokenizer, evaluate.read_texts(data), ratio=ratio, steps=steps, lessons=lessons,
        lengths=tokens or [1024], batch=batch, seed=seed, description=data.name, progress=progress,
    )  # fmt: skip
    _save(filters, out)
    Console().print(f"trained filters of {len(filters.filters)} layers, in {out}")


@app.command()
def tune(
    model: ModelName,
    ratio: Annotated[float, typer.Option(help="How many times fewer slots than tokens.")] = 4.0,
    steps: Annotated[int, typer.Option(min=1, help="Steps of gradient descent.")] = 240,
    lessons: Annotated[int, typer.Option(min=1, help="Pieces of text.")] = 24,
    out: Annotated[Path | None, typer.Option(help="Also save a copy to this folder.")] = None,
    seed: Seed = 0, dtype: Dtype = "bfloat16", device: Device = "cpu", progress: Progress = True,
) -> None:  # fmt: skip
    """Train filters of a model on texts that it writes itself; qfpass.compile then finds them."""
    original, tokenizer = load_model(model, dtype, device), load_tokenizer(model)
    filters = tune_model(
        original, tokenizer, ratio=ratio, steps=steps, lessons=lessons, seed=seed, progress=progress
    )
    if out is not None:
        _save(filters, out)


@app.command()
def push(
    filters: Annotated[str, typer.Argument(metavar="FILTERS", help="A folder of filters.")],
    repository: Annotated[
        str, typer.Argument(metavar="REPOSITORY", help="Where on the hub: organisation/name.")
    ],
    base_model: Annotated[
        str | None, typer.Option(help="The hub name of their model, if the filters don't say.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    """Upload filters to the hub, with a model card."""
    address = push_filters(load_filters(filters), repository, base_model=base_model, private=private)
    Console().print(f"pushed to {address}")


def _save(filters: QFilters | TrainedFilters, out: Path) -> None:
    try:
        filters.save(out)
    except OSError as error:
        raise InputError(f"can't write the filters into {out} ({error}): give another --out.") from error


def run(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; a QFPassError prints one line on standard error and exits with status 1.

    `arguments`: without the program's name; None for the process's own.
    """
    try:
        app(arguments, prog_name="qfpass")
    except QFPassError as error:
        Console(stderr=True, soft_wrap=True).print(
            f"[bold red]qfpass:[/] {escape(str(error))}", highlight=False
        )
        sys.exit(1)
