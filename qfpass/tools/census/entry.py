"""What the census found for a family, and the record of all families as JSON."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ...errors import ConfigError


@dataclass(frozen=True)
class Verdict:
    """The result of one column for one family.

    `outcome` is "yes", "refused", "wrong" or "crashed"; `note` says why.
    """

    outcome: str
    note: str = ""


@dataclass(frozen=True)
class Entry:
    """The result of the census for one family.

    `outcome` is "works", "refused", "wrong", "crashed" or "not built"; `note` says why. `kind` is one of
    `families.KINDS`, `answers` are those of the columns that were examined, by name.
    """

    family: str
    model: str
    outcome: str
    note: str = ""
    sites: int = 0
    spans: tuple[str, ...] = field(default=())
    kind: str = "causal"
    answers: Mapping[str, Verdict] = field(default_factory=dict)

    @property
    def name(self) -> tuple[str, str]:
        """What no other entry has: its kind and family."""
        return self.kind, self.family

    @property
    def is_bad(self) -> bool:
        """Whether anything is wrong or crashed, rather than refused."""
        found = {self.outcome, *(answer.outcome for answer in self.answers.values())}
        return bool(found & {"wrong", "crashed"})


def read_record(path: Path) -> list[Entry]:
    """The entries that `write_record` wrote; none if there is no such file.

    Raises:
        ConfigError: the file can't be read, or holds something else.
    """
    if not path.exists():
        return []
    try:
        return [_entry(**fields) for fields in json.loads(path.read_text())]
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"can't read {path} as a record of the census: {error}") from error


def write_record(path: Path, entries: Iterable[Entry]) -> None:
    """Write entries as JSON, one a line, so that a difference shows the families that changed."""
    path.write_text("[\n" + ",\n".join(json.dumps(_filled(asdict(entry))) for entry in entries) + "\n]\n")


def _entry(answers: Mapping[str, Mapping[str, str]] | None = None, **fields: Any) -> Entry:
    read = {name: Verdict(**answer) for name, answer in (answers or {}).items()}
    return Entry(**fields | {"spans": tuple(fields.get("spans", ())), "answers": read})


def _filled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields without those that are empty."""
    named = {name: _filled(value) if isinstance(value, Mapping) else value for name, value in fields.items()}
    return {name: value for name, value in named.items() if value or name == "model"}
