"""The command line: `qfpass evaluate`, `calibrate`, `train`, `census` and `bench`.

Needs typer: pip install 'qfpass[evaluate]'.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

import torch
from rich.console import Console

from . import evaluate
from .errors import ConfigError, InputError, QFPassError
from .evaluate.models import load_model, load_tokenizer
from .evaluate.needles import KINDS
from .filters import QFilters, TrainedFilters, load_filters
from .filters.calibrate import calibrate as calibrate_model
from .training.train import train as train_filters

try:
    import typer

    from .bench.command import run_bench
    from .census.command import run_census
except ImportError:  # before any command exists
    sys.exit("qfpass: the command line needs typer: pip install 'qfpass[evaluate]'")

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Long contexts in a small, constant memory."
)
commands = typer.Typer(
    no_args_is_help=True, help="Measure scores and budgets against the uncompressed model."
)
app.add_typer(commands, name="evaluate")
app.command("census")(run_census)
app.command("bench")(run_bench)

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="A folder or a hub name.")]
Data = Annotated[Path, typer.Option(help="A text file, or a folder of .txt and .md files.")]
Ratios = Annotated[
    list[float] | None, typer.Option("--ratio", help="n / ratio slots for n tokens; repeatable.")
]
Budgets = Annotated[list[int] | None, typer.Option("--budget", help="Slots a head; repeatable.")]
Scores = Annotated[list[str] | None, typer.Option("--score", help="Which key goes first; repeatable.")]
Recent = Annotated[int | None, typer.Option(help="Newest tokens kept; a quarter of the slots by default.")]
Sinks = Annotated[int, typer.Option(help="First tokens kept.")]
Filters = Annotated[
    list[str] | None, typer.Option(help="A folder or hub name, repeatable: each for its score.")
]
Out = Annotated[Path, typer.Option(help="Where the JSON record and the PNG plot go.")]
Seed = Annotated[int, typer.Option(help="Decides every sample.")]
Batch = Annotated[int, typer.Option(min=1, help="Texts run together.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, ...")]
Plot = Annotated[bool, typer.Option(help="Draw the PNG.")]
Progress = Annotated[bool, typer.Option(help="Show progress bars.")]
Chat = Annotated[bool | None, typer.Option(help="Use the chat template; by default if there is one.")]


@commands.command()
def perplexity(
    model: ModelName, data: Data, ratio: Ratios = None, budget: Budgets = None, score: Scores = None,
    tokens: Annotated[int, typer.Option(help="Tokens a text.")] = 2048,
    texts: Annotated[int, typer.Option(help="Texts.")] = 8,
    first: Annotated[int | None, typer.Option(help="Tokens not counted; else the largest budget.")] = None,
    recent: Recent = None, sinks: Sinks = 4, filters: Filters = None, out: Out = Path("qfpass-results"),
    seed: Seed = 0, batch: Batch = 8, dtype: Dtype = "float32", device: Device = "cpu", plot: Plot = True,
    progress: Progress = True,
) -> None:  # fmt: skip
    """Perplexity of streamed text, every token predicted from the store as it stands."""
    settings = _settings(locals())
    chosen = _methods(score, ratio, budget, recent, sinks)
    first = max(m.slots(tokens) for m in chosen) if first is None else first
    original, tokenizer = load_model(model, dtype, device), load_tokenizer(model)
    rows = evaluate.token_rows(tokenizer, evaluate.read_text(data), tokens=tokens, rows=texts, seed=seed)

    def run(each: Any) -> Any:
        return evaluate.perplexity(each, rows, first=first, batch=batch, progress=progress)

    models = evaluate.with_methods(original, chosen, filters=list(map(load_filters, filters or [])))
    _finish(
        evaluate.compare("perplexity", _short(model), models, run, settings | {"first": first}), out, plot
    )


@commands.command()
def needle(
    model: ModelName, data: Data, ratio: Ratios = None, budget: Budgets = None, score: Scores = None,
    length: Annotated[list[int] | None, typer.Option(help="Tokens of context; repeatable.")] = None,
    depths: Annotated[int, typer.Option(min=1, help="Depths, from start to end.")] = 10,
    needles: Annotated[int, typer.Option(min=1, help="Needles at each length and depth.")] = 5,
    kind: Annotated[list[str] | None, typer.Option(help="numbers, words, sentences; repeatable.")] = None,
    recent: Recent = None, sinks: Sinks = 4, filters: Filters = None, chat: Chat = None,
    out: Out = Path("qfpass-results"), seed: Seed = 0, batch: Batch = 8, dtype: Dtype = "float32",
    device: Device = "cpu", plot: Plot = True, progress: Progress = True,
) -> None:  # fmt: skip
    """Needle in a haystack, asked for after the context is compressed."""
    settings = _settings(locals())
    chosen = _methods(score, ratio, budget, recent, sinks)
    original, tokenizer = load_model(model, dtype, device), load_tokenizer(model)
    haystack = evaluate.read_text(data)

    def run(each: Any) -> Any:
        return evaluate.needle(
            each, tokenizer, haystack, lengths=length or (1024, 2048), depths=depths, needles=needles,
            kinds=kind or KINDS, chat=chat, seed=seed, batch=batch, progress=progress,
        )  # fmt: skip

    models = evaluate.with_methods(original, chosen, filters=list(map(load_filters, filters or [])))
    _finish(evaluate.compare("needle", _short(model), models, run, settings), out, plot)


@commands.command()
def ruler(
    model: ModelName, data: Data, ratio: Ratios = None, budget: Budgets = None, score: Scores = None,
    length: Annotated[int, typer.Option(help="Tokens of a prompt, its answer included.")] = 2048,
    task: Annotated[list[str] | None, typer.Option(help="A task; repeatable; else all eleven.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples a task.")] = 10,
    recent: Recent = None, sinks: Sinks = 4, filters: Filters = None, chat: Chat = None,
    out: Out = Path("qfpass-results"), seed: Seed = 0, batch: Batch = 8, dtype: Dtype = "float32",
    device: Device = "cpu", plot: Plot = True, progress: Progress = True,
) -> None:  # fmt: skip
    """RULER's synthetic tasks; --data holds the essays."""
    settings = _settings(locals())
    chosen = _methods(score, ratio, budget, recent, sinks)
    original, tokenizer = load_model(model, dtype, device), load_tokenizer(model)
    essays = evaluate.read_text(data)

    def run(each: Any) -> Any:
        return evaluate.ruler(
            each, tokenizer, essays, length=length, tasks=task or tuple(evaluate.TASKS), samples=samples,
            chat=chat, seed=seed, batch=batch, progress=progress,
        )  # fmt: skip

    models = evaluate.with_methods(original, chosen, filters=list(map(load_filters, filters or [])))
    _finish(evaluate.compare("ruler", _short(model), models, run, settings), out, plot)


@commands.command()
def generation(
    model: ModelName, data: Data, ratio: Ratios = None, budget: Budgets = None, score: Scores = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens written.")] = 256,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 1024,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts.")] = 8,
    recent: Recent = None, sinks: Sinks = 4, filters: Filters = None, out: Out = Path("qfpass-results"),
    seed: Seed = 0, batch: Batch = 8, dtype: Dtype = "float32", device: Device = "cpu", plot: Plot = True,
    progress: Progress = True,
) -> None:  # fmt: skip
    """Long generation against the uncompressed model's own text."""
    settings = _settings(locals())
    chosen = _methods(score, ratio, budget, recent, sinks)
    original, tokenizer = load_model(model, dtype, device), load_tokenizer(model)
    text = evaluate.read_text(data)
    rows = evaluate.token_rows(tokenizer, text, tokens=prompt_tokens, rows=prompts, seed=seed)
    expected, _ = evaluate.greedy(original, rows, tokens, batch=batch, progress=progress)

    def run(each: Any) -> Any:
        return evaluate.generation(
            each, original, rows, new_tokens=tokens, expected=expected, batch=batch, progress=progress
        )

    models = evaluate.with_methods(original, chosen, filters=list(map(load_filters, filters or [])))
    _finish(evaluate.compare("generation", _short(model), models, run, settings), out, plot)


@app.command()
def calibrate(
    model: ModelName, data: Data, out: Annotated[Path, typer.Option(help="The filters' folder.")],
    sequences: Annotated[int, typer.Option(min=1, help="Pieces of text.")] = 20,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens a piece.")] = 2048,
    seed: Seed = 0, dtype: Dtype = "float32", device: Device = "cpu", progress: Progress = True,
) -> None:  # fmt: skip
    """Make Q-Filters of a model from a text."""
    original, tokenizer = load_model(model, dtype, device), load_tokenizer(model)
    rows = evaluate.token_rows(tokenizer, evaluate.read_text(data), tokens=tokens, rows=sequences, seed=seed)
    described = f"{sequences} x {tokens} tokens of {data.name}, seed {seed}"
    filters = calibrate_model(
        original, list(rows), sequence_length=tokens, description=described, progress=progress
    )
    _save(filters, out)
    Console().print(f"Q-Filters of {len(filters.filters)} layers from {described}, in {out}")


@app.command()
def train(
    model: ModelName, data: Data, out: Annotated[Path, typer.Option(help="The filters' folder.")],
    ratio: Annotated[float, typer.Option(help="How many times smaller the store will be.")] = 8.0,
    steps: Annotated[int, typer.Option(min=1, help="Steps of gradient descent.")] = 330,
    lessons: Annotated[int, typer.Option(min=1, help="Pieces of text.")] = 40,
    tokens: Annotated[int, typer.Option(min=64, help="Tokens a piece.")] = 1024,
    seed: Seed = 0, dtype: Dtype = "bfloat16", device: Device = "cpu", progress: Progress = True,
) -> None:  # fmt: skip
    """Train filters of a model on a text, for `qfpass.compile(model, filters=OUT)`."""
    original, tokenizer = load_model(model, dtype, device), load_tokenizer(model)
    filters = train_filters(
        original, tokenizer, evaluate.read_texts(data), ratio=ratio, steps=steps, lessons=lessons,
        length=tokens, seed=seed, description=data.name, progress=progress,
    )  # fmt: skip
    _save(filters, out)
    Console().print(f"trained filters of {len(filters.filters)} layers, in {out}")


def _save(filters: QFilters | TrainedFilters, out: Path) -> None:
    try:
        filters.save(out)
    except OSError as error:
        raise InputError(f"can't write the filters into {out} ({error}): give another --out.") from error


def main() -> None:
    """Run the command line; what goes wrong on purpose is one line on standard error and status 1."""
    try:
        app()
    except QFPassError as error:
        Console(stderr=True).print(f"[bold red]qfpass:[/] {error}", highlight=False)
        sys.exit(1)


def _methods(
    scores: list[str] | None, ratios: list[float] | None, budgets: list[int] | None, recent: int | None,
    sinks: int,
) -> list[evaluate.Method]:  # fmt: skip
    """Every score at every budget and ratio; by default the published score at 8x."""
    sizes: list[dict[str, Any]] = [{"budget": b} for b in budgets or []] + [
        {"ratio": r} for r in ratios or []
    ]
    return [
        evaluate.Method(score, recent=recent, sinks=sinks, **size)
        for size in sizes or [{"ratio": 8.0}]
        for score in scores or ["published"]
    ]


def _settings(arguments: dict[str, Any]) -> dict[str, Any]:
    """A command's arguments as they go into the record."""
    left_out = ("model", "out", "plot", "progress")
    kept = {name: value for name, value in arguments.items() if name not in left_out}
    return kept | {"data": arguments["data"].name, "torch_threads": torch.get_num_threads()}


def _short(model: str) -> str:
    """A model's name in titles: a folder's last part."""
    return Path(model).name if Path(model).is_dir() else model


def _finish(evaluation: evaluate.Evaluation, out: Path, plot: bool) -> None:
    print(evaluation)
    try:
        written = [evaluation.save(out), *([evaluate.plot(evaluation, out)] if plot else [])]
    except OSError as error:
        raise ConfigError(f"can't write results into {out} ({error}): give another --out.") from error
    Console().print("written: " + ", ".join(map(str, written)), soft_wrap=True)
