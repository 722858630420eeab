"""What `qfpass doctor` finds on this machine, and on one that lacks something."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from qfpass.errors import QFPassError
from qfpass.switches import NAMES
from qfpass.tools import cli, doctor
from qfpass.tools.doctor import BROKEN, GOOD, SLOW, Finding, examine
from qfpass.upstream import inductor_cache


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("QFPASS_CACHE", str(tmp_path / "qfpass"))
    monkeypatch.setattr(inductor_cache, "cache_folder", lambda: tmp_path / "inductor")


def found(trial: bool = False) -> dict[str, Finding]:
    return {finding.subject: finding for finding in examine(trial)}


def test_a_good_machine(tmp_path: Path) -> None:
    told = found()
    assert {
        "Python",
        "qfpass",
        "torch",
        "transformers",
        "C++ compiler",
        "processor",
        "filters",
    } <= told.keys()
    assert BROKEN not in {finding.state for finding in told.values()}
    assert str(tmp_path / "qfpass") in told["filters"].told and "free" in told["filters"].told


def test_what_is_missing_is_told_with_its_cure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "inductor").write_text("in the way")
    monkeypatch.setattr(doctor, "cpp_compiler", lambda: None)
    monkeypatch.setattr(doctor, "has_vectors", lambda: False)
    monkeypatch.setattr(doctor, "TESTED", {"torch": ("1.0.0", "1.1.0")})
    told = found()
    assert told["C++ compiler"].state == BROKEN and "install g++" in told["C++ compiler"].told
    assert told["compiled code"].state == BROKEN and "set QFPASS_CACHE" in told["compiled code"].told
    assert told["processor"].state == SLOW and told["torch"].state == SLOW


def test_the_trial_says_what_is_used() -> None:
    told = {each.name: each for each in doctor.try_tiny_model(backend="eager")}
    assert told.keys() == set(NAMES)
    assert told["replay"].reason == "the backend is 'eager'"


@pytest.mark.parametrize("fails", [False, True])
def test_a_trial_that_fails_is_broken(fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def tried() -> tuple[()]:
        if fails:
            raise RuntimeError("no such instruction\nand more")
        return ()

    monkeypatch.setattr(doctor, "try_tiny_model", tried)
    told = found(trial=True).get("a tiny model")
    assert told == (Finding("a tiny model", BROKEN, "RuntimeError: no such instruction") if fails else None)


def test_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    good = CliRunner().invoke(cli.app, ["doctor", "--no-trial"], catch_exceptions=False)
    assert good.exit_code == 0 and GOOD in good.output and "torch" in good.output
    monkeypatch.setattr(doctor, "cpp_compiler", lambda: None)
    with pytest.raises(QFPassError, match=r"compiling doesn't work here: see C\+\+ compiler above"):
        CliRunner().invoke(cli.app, ["doctor", "--no-trial"], catch_exceptions=False)
