"""`qfpass census`: which of transformers' decoders work here."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ...errors import ConfigError
from .columns import COLUMNS
from .entry import Entry, read_record, write_record
from .families import families
from .run import TIME_LIMIT, Inquiry, census, inquiry
from .table import page

CORES = os.cpu_count() or 1

Names = Annotated[list[str] | None, typer.Argument(metavar="[FAMILY]...", help="Families; else all of them.")]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        help=f"Examine only this in families that work by the record: {', '.join(COLUMNS)}; repeatable.",
    ),
]
Configs = Annotated[
    Path | None, typer.Option(help="JSON: family to fields of its tiny configuration that can't be guessed.")
]
Record = Annotated[
    Path | None,
    typer.Option(help="JSON of all results; this run replaces only what it examines."),
]
Missing = Annotated[
    bool, typer.Option("--missing", help="Examine only the families and columns that the record lacks.")
]
Out = Annotated[Path | None, typer.Option(help="Write all results as Markdown here.")]
Jobs = Annotated[int, typer.Option(min=1, help="Families at a time.")]
Limit = Annotated[float, typer.Option(min=1, help="Seconds a family may take.")]


def run_census(
    names: Names = None,
    columns: Columns = None,
    configs: Configs = None,
    record: Record = None,
    missing: Missing = False,
    out: Out = None,
    jobs: Jobs = CORES,
    time_limit: Limit = TIME_LIMIT,
) -> None:
    """Build, compile and compare a tiny model of every family of decoders that transformers has."""
    asked, fixed = _asked(names), _fixed(configs)
    if unknown := sorted(set(columns or []) - set(COLUMNS)):
        raise ConfigError(f"the census has no column {', '.join(unknown)}; there are {', '.join(COLUMNS)}.")
    known = {entry.name: entry for entry in read_record(record)} if record else {}
    console = Console(highlight=False, soft_wrap=True)
    examined = []
    for entry in census(_inquiries(asked, known, columns, missing, fixed), jobs, time_limit):
        known[entry.name] = entry
        examined.append(entry)
        console.print(_line(entry), markup=False)
        if record is not None:  # after each, so that a run that is broken off can be gone on with
            _write(record, lambda path: write_record(path, _in_order(known)))
    if out is not None:
        _write(out, lambda path: path.write_text(page(_in_order(known))))
    if bad := [entry.family for entry in examined if entry.is_bad]:
        console.print(f"wrong or crashed: {', '.join(bad)}", markup=False)
        raise typer.Exit(1)


def _asked(names: Sequence[str] | None) -> list[tuple[str, str]]:
    """Kinds and names of the families; all without names."""
    known = families()
    if unknown := sorted(set(names or []) - {family for _, family in known}):
        raise ConfigError(f"transformers has no family of decoders called {', '.join(unknown)}.")
    return [each for each in known if not names or each[1] in names]


def _inquiries(
    asked: Sequence[tuple[str, str]],
    known: Mapping[tuple[str, str], Entry],
    columns: Sequence[str] | None,
    missing: bool,
    fixed: Mapping[str, Mapping[str, Any]],
) -> list[Inquiry]:
    made = []
    for kind, family in asked:
        entry = known.get((kind, family), Entry(family, "", "", kind=kind))
        whole = not entry.outcome or not (columns or missing)
        wanted = [name for name in columns or COLUMNS if not (missing and name in entry.answers)]
        if whole or (entry.outcome == "works" and wanted):
            made.append(inquiry(entry, wanted, whole, fixed.get(family, {})))
    return made


def _in_order(known: Mapping[tuple[str, str], Entry]) -> list[Entry]:
    """As transformers lists them; families that it hasn't are left out."""
    return [known[name] for name in families() if name in known]


def _line(entry: Entry) -> str:
    what = "; ".join(entry.spans) if entry.outcome == "works" else entry.note
    answers = [f"{name}: {' '.join((a.outcome, a.note)).strip()}" for name, a in entry.answers.items()]
    return "\n  ".join([f"{entry.family} ({entry.kind}): {entry.outcome} ({what})", *answers])


def _write(path: Path, write: Callable[[Path], object]) -> None:
    try:
        write(path)
    except OSError as error:
        raise ConfigError(f"can't write {path} ({error}): give another file.") from error


def _fixed(configs: Path | None) -> dict[str, dict[str, object]]:
    if configs is None:
        return {}
    try:
        return json.loads(configs.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"can't read {configs} as JSON: {error}") from error
