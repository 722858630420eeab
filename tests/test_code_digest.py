"""The digest of source files follows each of them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from qfpass.code_digest import digest_of


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
    (tmp_path / "tools" / "evaluate").mkdir(parents=True)
    (tmp_path / "part" / "tools").mkdir()
    return tmp_path


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_a_source_changes_it(change: str, folder: Path) -> None:
    before = digest_of(folder)
    CHANGES[change](folder)
    assert digest_of(folder) != before


@pytest.mark.parametrize("name", ["notes.txt", "tools/evaluate/plots.py", "tools/cli.py"])
def test_what_does_not_decide_the_code_does_not(name: str, folder: Path) -> None:
    before = digest_of(folder)
    (folder / name).touch()
    assert digest_of(folder) == before


def test_a_file_of_a_part_is_not_taken_for_a_command(folder: Path) -> None:
    before = digest_of(folder)
    (folder / "part" / "tools/cli.py").touch()
    assert digest_of(folder) != before
