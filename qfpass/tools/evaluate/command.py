"""`qfpass evaluate`: scores and budgets against the uncompressed model."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from ...errors import ConfigError
from ...filters import load_filters
from ...store.scores import SCORES
from .. import evaluate
from ..options import Data, Device, Dtype, ModelName, Progress, Seed
from .baselines import BASELINES
from .models import load_model, load_tokenizer
from .needles import KINDS
from .plots import require_matplotlib

commands = typer.Typer(
    no_args_is_help=True, help="Measure scores and budgets against the uncompressed model."
)

Ratios = Annotated[
    list[float] | None,
    typer.Option("--ratio", help="How many times fewer bytes than the full cache; repeatable; else 8."),
]
Budgets = Annotated[
    list[int] | None, typer.Option("--budget", help="Slots a head, instead of a ratio; repeatable.")
]
Scores = Annotated[
    list[str] | None,
    typer.Option("--score", help=f"{', '.join((*SCORES, *BASELINES))}; repeatable; else published."),
]
Recent = Annotated[int | None, typer.Option(help="Newest tokens never evicted; else the score's own.")]
Sinks = Annotated[int, typer.Option(help="First tokens kept.")]
Filters = Annotated[
    list[str] | None,
    typer.Option(help="Filters: a folder or hub name; repeatable; else found or made."),
]
Out = Annotated[Path, typer.Option(help="Where the JSON record and the PNG plot go.")]
Batch = Annotated[int, typer.Option(min=1, help="Texts run together.")]
Plot = Annotated[bool, typer.Option(help="Draw the PNG.")]
StoreDtype = Annotated[
    str | None,
    typer.Option(help="int8, or int8-int4 (values in four bits); else the model's."),
]
Chat = Annotated[bool | None, typer.Option(help="Use the chat template; by default if there is one.")]


@commands.command()
def perplexity(
    model: ModelName, data: Data, ratio: Ratios = None, budget: Budgets = None, score: Scores = None,
    tokens: Annotated[int, typer.Option("--length", help="Tokens of a text.")] = 2048,
    texts: Annotated[int, typer.Option(help="Texts.")] = 8,
    first: Annotated[int | None, typer.Option(help="First tokens left out; else the largest budget.")] = None,
    recent: Recent = None, sinks: Sinks = 4, store_dtype: StoreDtype = None,
    filters: Filters = None, out: Out = Path("qfpass-results"),
    seed: Seed = 0, batch: Batch = 8, dtype: Dtype = "float32", device: Device = "cpu", plot: Plot = True,
    progress: Progress = True,
) -> None:  # fmt: skip
    """Perplexity of streamed text, every token predicted from the store as it stands."""
    settings = _settings(locals())
    chosen = _methods(score, ratio, budget, recent, sinks, store_dtype)
    original, tokenizer = _begin(model, dtype, device, out, plot)
    models = evaluate.with_methods(original, chosen, filters=list(map(load_filters, filters or [])))
    if first is None:
        first = max(each.slots(tokens) for each in models.values() if isinstance(each, evaluate.Bounded))
        if first >= tokens:
            raise ConfigError(
                f"with {first} slots nothing of {tokens} tokens is evicted: give a greater --ratio, or "
                "a smaller --budget or --first."
            )
    rows = evaluate.token_rows(tokenizer, evaluate.read_text(data), tokens=tokens, rows=texts, seed=seed)

    def run(each: Any) -> Any:
        return evaluate.perplexity(each, rows, first=first, batch=batch, progress=progress)

    _finish(
        evaluate.compare("perplexity", _short(model), models, run, settings | {"first": first}), out, plot
    )


@commands.command()
def needle(
    model: ModelName, data: Data, ratio: Ratios = None, budget: Budgets = None, score: Scores = None,
    length: Annotated[
        list[int] | None, typer.Option(help="Tokens of a text; repeatable; else 1024, 2048.")
    ] = None,
    depths: Annotated[int, typer.Option(min=1, help="Places in a text, from start to end.")] = 10,
    needles: Annotated[int, typer.Option(min=1, help="Needles at each length and depth.")] = 5,
    kind: Annotated[list[str] | None, typer.Option(help="numbers, words, sentences; repeatable.")] = None,
    recent: Recent = None, sinks: Sinks = 4, store_dtype: StoreDtype = None,
    filters: Filters = None, chat: Chat = None,
    out: Out = Path("qfpass-results"), seed: Seed = 0, batch: Batch = 8, dtype: Dtype = "float32",
    device: Device = "cpu", plot: Plot = True, progress: Progress = True,
) -> None:  # fmt: skip
    """Needle in a haystack, asked for after the context is compressed."""
    settings = _settings(locals())
    chosen = _methods(score, ratio, budget, recent, sinks, store_dtype)
    original, tokenizer = _begin(model, dtype, device, out, plot)
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
    length: Annotated[int, typer.Option(help="Tokens of a prompt and its answer.")] = 2048,
    task: Annotated[list[str] | None, typer.Option(help="A task; repeatable; else all eleven.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples per task.")] = 10,
    recent: Recent = None, sinks: Sinks = 4, store_dtype: StoreDtype = None,
    filters: Filters = None, chat: Chat = None,
    out: Out = Path("qfpass-results"), seed: Seed = 0, batch: Batch = 8, dtype: Dtype = "float32",
    device: Device = "cpu", plot: Plot = True, progress: Progress = True,
) -> None:  # fmt: skip
    """RULER's synthetic tasks; --data holds the essays."""
    settings = _settings(locals())
    chosen = _methods(score, ratio, budget, recent, sinks, store_dtype)
    original, tokenizer = _begin(model, dtype, device, out, plot)
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
    tokens: Annotated[int, typer.Option("--new-tokens", min=1, help="Tokens written.")] = 256,
    prompt_tokens: Annotated[int, typer.Option("--length", min=1, help="Tokens of a prompt.")] = 1024,
    prompts: Annotated[int, typer.Option(min=1, help="Prompts.")] = 8,
    recent: Recent = None, sinks: Sinks = 4, store_dtype: StoreDtype = None,
    filters: Filters = None, out: Out = Path("qfpass-results"),
    seed: Seed = 0, batch: Batch = 8, dtype: Dtype = "float32", device: Device = "cpu", plot: Plot = True,
    progress: Progress = True,
) -> None:  # fmt: skip
    """Long generation against the uncompressed model's own text."""
    settings = _settings(locals())
    chosen = _methods(score, ratio, budget, recent, sinks, store_dtype)
    original, tokenizer = _begin(model, dtype, device, out, plot)
    text = evaluate.read_text(data)
    rows = evaluate.token_rows(tokenizer, text, tokens=prompt_tokens, rows=prompts, seed=seed)
    expected, _ = evaluate.greedy(original, rows, tokens, batch=batch, progress=progress)

    def run(each: Any) -> Any:
        return evaluate.generation(
            each, original, rows, new_tokens=tokens, expected=expected, batch=batch, progress=progress
        )

    models = evaluate.with_methods(original, chosen, filters=list(map(load_filters, filters or [])))
    _finish(evaluate.compare("generation", _short(model), models, run, settings), out, plot)


STORE_DTYPES: dict[str | None, torch.dtype | str | None] = {
    None: None, "int8": torch.int8, "int8-int4": "int8-int4",
}  # fmt: skip


def _methods(
    scores: list[str] | None, ratios: list[float] | None, budgets: list[int] | None, recent: int | None,
    sinks: int, store_dtype: str | None,
) -> list[evaluate.Method]:  # fmt: skip
    """Every score at every budget and ratio; by default the published score at 8x."""
    if store_dtype not in STORE_DTYPES:
        raise ConfigError(
            f"--store-dtype must be int8 or int8-int4, or left out for the model's own, not {store_dtype!r}."
        )
    stored = STORE_DTYPES[store_dtype]
    sizes: list[dict[str, Any]] = [{"budget": b} for b in budgets or []] + [
        {"ratio": r} for r in ratios or []
    ]
    return [
        evaluate.Method(score, recent=recent, sinks=sinks, store_dtype=stored, **size)
        for size in sizes or [{"ratio": 8.0}]
        for score in scores or ["published"]
    ]


def _begin(model: str, dtype: str, device: str, out: Path, plot: bool) -> tuple[Any, Any]:
    """The model and its tokenizer, once results can be written and drawn."""
    if plot:
        require_matplotlib()
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"can't write results into {out} ({error}): give another --out.") from error
    return load_model(model, dtype, device), load_tokenizer(model)


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
