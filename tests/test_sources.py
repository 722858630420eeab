"""The digest of source files follows each of them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from qfpass.sources import digest_of


def rename(folder: Path) -> None:
    (folder / "part" / "loop.cpp").rename(folder / "part" / "other.cpp")


CHANGES: dict[str, Callable[[Path], object]] = {
    "a module": lambda folder: (folder / "module.py").write_text("x = 2\n"),
    "a loop": lambda folder: (folder / "part" / "loop.cpp").write_text("int y;\n"),
    "a new file": lambda folder: (folder / "part" / "new.py").touch(),
    "a name": rename,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "part").mkdir()
    (tmp_path / "module.py").write_text("x = 1\n")
    (tmp_path / "part" / "loop.cpp").write_text("int x;\n")
    return tmp_path


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_a_source_changes_it(change: str, folder: Path) -> None:
    before = digest_of(folder)
    CHANGES[change](folder)
    assert digest_of(folder) != before


def test_what_is_no_source_does_not(folder: Path) -> None:
    before = digest_of(folder)
    (folder / "notes.txt").touch()
    assert digest_of(folder) == before
