"""`qfpass census`: which of transformers' decoders work here."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ...errors import ConfigError
from .run import TIME_LIMIT, census, families
from .table import page

CORES = os.cpu_count() or 1

Names = Annotated[list[str] | None, typer.Argument(metavar="[FAMILY]...", help="Families; else all of them.")]
Configs = Annotated[
    Path | None, typer.Option(help="JSON: family to fields of its tiny configuration that can't be guessed.")
]
Out = Annotated[Path | None, typer.Option(help="A Markdown file for the result.")]
Jobs = Annotated[int, typer.Option(min=1, help="Families at a time.")]
Limit = Annotated[float, typer.Option(min=1, help="Seconds a family may take.")]


def run_census(
    names: Names = None,
    configs: Configs = None,
    out: Out = None,
    jobs: Jobs = CORES,
    time_limit: Limit = TIME_LIMIT,
) -> None:
    """Build, compile and compare a tiny model of every causal family that transformers has."""
    known = families()
    if unknown := sorted(set(names or []) - set(known)):
        raise ConfigError(f"transformers has no causal language model called {', '.join(unknown)}.")
    entries, console = [], Console(highlight=False, soft_wrap=True)
    for entry in census(names or known, _fixed(configs), jobs, time_limit):
        entries.append(entry)
        what = "; ".join(entry.spans) if entry.outcome == "works" else entry.note
        console.print(f"{entry.family}: {entry.outcome} ({what})", markup=False)
    entries.sort(key=lambda entry: known.index(entry.family))
    if out is not None:
        try:
            out.write_text(page(entries))
        except OSError as error:
            raise ConfigError(f"can't write {out} ({error}): give another --out.") from error
    if bad := [e.family for e in entries if e.outcome in ("wrong", "crashed")]:
        raise typer.Exit(_failed(console, bad))


def _failed(console: Console, bad: list[str]) -> int:
    console.print(f"wrong or crashed: {', '.join(bad)}", markup=False)
    return 1


def _fixed(configs: Path | None) -> dict[str, dict[str, object]]:
    if configs is None:
        return {}
    try:
        return json.loads(configs.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"can't read {configs} as JSON: {error}") from error
