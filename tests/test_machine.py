"""What compiling needs of the machine is asked for at once, and each lack has one clear error."""

import os
from collections import namedtuple
from pathlib import Path

import pytest
from tiny import FAMILIES

import qfpass
from qfpass import machine
from qfpass.errors import MachineError
from qfpass.upstream import inductor_cache


def compile_tiny() -> None:
    qfpass.compile(FAMILIES["llama"](layers=1), budget=16, score="recency")


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpp_compiler", lambda: None)
    with pytest.raises(MachineError, match=r"no C\+\+ compiler was found: install one .*CXX.*eager"):
        compile_tiny()


def test_no_permission(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(inductor_cache, "cache_folder", lambda: tmp_path / "file" / "folder")
    with pytest.raises(MachineError, match=r"can't be written into .*\(Not a directory\): set QFPASS"):
        compile_tiny()


def test_no_space(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(inductor_cache, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage(2**30, 2**30, 5 * 2**20))
    with pytest.raises(MachineError, match="has 5 MiB left, too few for compiled code"):
        compile_tiny()


def test_eager_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cpp_compiler", lambda: None)
    qfpass.compile(FAMILIES["llama"](layers=1), budget=16, score="recency", backend="eager")


@pytest.mark.parametrize("own", [None, "elsewhere"])
def test_compiled_code_goes_where_the_cache_is(
    own: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QFPASS_CACHE", str(tmp_path))
    monkeypatch.delenv(inductor_cache.VARIABLE, raising=False)
    if own is not None:
        monkeypatch.setenv(inductor_cache.VARIABLE, own)
    else:  # so that it is put back
        monkeypatch.setenv(inductor_cache.VARIABLE, "x")
        del os.environ[inductor_cache.VARIABLE]
    machine.place_compiled_code()
    assert os.environ[inductor_cache.VARIABLE] == (own or str(tmp_path / "inductor"))
