"""Waits tell what they are, how far they are, and nothing where they are short."""

import re
import time

import pytest

from qfpass import waits
from qfpass.waits import Wait


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "FIRST", 0.01)
    monkeypatch.setattr(waits, "EVERY", 0.05)


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    told = capsys.readouterr()
    assert told.out == ""
    return told.err.splitlines()


def test_what_is_short_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with Wait("a moment"):
        pass
    assert lines(capsys) == []


@pytest.mark.usefixtures("soon")
def test_it_says_what_and_then_how_far(capsys: pytest.CaptureFixture[str]) -> None:
    with Wait("reading", "a while; nothing needs none") as wait:
        for _ in wait.count(range(3)):
            time.sleep(0.08)
    first, *rest = lines(capsys)
    assert first == "qfpass: reading (a while; nothing needs none)"
    assert rest and all(re.fullmatch(r"qfpass: reading: [0-3] of 3, \d+ s so far", line) for line in rest)


@pytest.mark.usefixtures("soon")
def test_an_error_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        with Wait("trying"):
            time.sleep(0.03)
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    told = lines(capsys)
    time.sleep(0.1)
    assert told == ["qfpass: trying"] and lines(capsys) == []


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("quiet", ["not shown", "by the environment"])
def test_it_can_be_quiet(
    quiet: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if quiet == "by the environment":
        monkeypatch.setenv(waits.QUIET, "1")
    with Wait("reading", shown=quiet != "not shown"):
        time.sleep(0.05)
    assert lines(capsys) == []
