"""Waits tell what they are, how far they are, and nothing where they are short."""

import re
import subprocess
import sys
import time
from itertools import pairwise

import pytest

from qfpass import waits
from qfpass.waits import Wait


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waits, "FIRST", 0.01)
    monkeypatch.setattr(waits, "EVERY", 0.05)
    monkeypatch.setattr(waits, "SOON", 0.01)
    monkeypatch.setattr(waits, "_explained", set[str]())


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


@pytest.mark.usefixtures("soon")
def test_of_waits_inside_each_other_the_innermost_tells(capsys: pytest.CaptureFixture[str]) -> None:
    with Wait("preparing"):
        time.sleep(0.1)
        with Wait("reading"):
            time.sleep(0.25)
        time.sleep(0.15)
    told = [line.removeprefix("qfpass: ").split(":")[0] for line in lines(capsys)]
    inside = told[told.index("reading") : len(told) - told[::-1].index("reading")]
    assert told[0] == told[-1] == "preparing" and set(inside) == {"reading"} and len(inside) > 2


@pytest.mark.usefixtures("soon")
def test_many_short_waits_leave_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    said, say = [time.monotonic()], waits.say

    def note(what: str) -> None:
        said.append(time.monotonic())
        say(what)

    monkeypatch.setattr(waits, "say", note)
    with Wait("preparing"):
        for _ in range(200):
            with Wait("a moment"):
                time.sleep(0.005)  # over before it would say anything
    assert max(b - a for a, b in pairwise([*said, time.monotonic()])) < 0.5  # of more than a second


@pytest.mark.usefixtures("soon")
def test_the_same_words_are_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    with Wait("compiling", "a minute"), Wait("compiling", "a minute"):
        time.sleep(0.04)
    told = lines(capsys)
    assert told[0] == "qfpass: compiling (a minute)" and told.count(told[0]) == 1
    with Wait("compiling", "a minute"):
        time.sleep(0.04)
    assert lines(capsys)[0] == "qfpass: compiling"


def test_a_command_can_be_a_wait() -> None:
    command = [sys.executable, "-c", "import time; time.sleep(1.3); exit(3)"]
    done = subprocess.run(
        [sys.executable, waits.__file__, "sleeping", *command], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (3, "qfpass: sleeping\n")
