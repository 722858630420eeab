"""A version that was not tested is told once, in one line; others say nothing."""

import re
import subprocess
import sys
import tomllib
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from qfpass.upstream import versions
from qfpass.upstream.entry import UpstreamWarning
from qfpass.upstream.versions import TESTED, warn_if_untested

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def nothing_was_said() -> Iterator[None]:
    warn_if_untested.cache_clear()
    yield
    warn_if_untested.cache_clear()


def said(monkeypatch: pytest.MonkeyPatch, torch_version: str, transformers_version: str) -> list[str]:
    """What two calls warn of."""
    monkeypatch.setattr(versions.torch, "__version__", torch_version)
    # By the module's own name: transformers imports itself anew at times, as another module.
    monkeypatch.setattr(versions.transformers, "__version__", transformers_version)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_untested()
        warn_if_untested()
    assert all(warning.category is UpstreamWarning for warning in caught)
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("torch_version", [*TESTED["torch"], "2.12.1", "2.13.0+cu130", "2.14.1+cpu"])
@pytest.mark.parametrize("transformers_version", [*TESTED["transformers"], "5.10.2", "5.24.0.dev0"])
def test_tested_versions_say_nothing(
    monkeypatch: pytest.MonkeyPatch, torch_version: str, transformers_version: str
) -> None:
    assert said(monkeypatch, torch_version, transformers_version) == []


NEWER, OLDER = "newer than {}, the newest that was tested", "older than {}, the oldest that works"


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (("2.14.2", "5.24.0"), ["torch 2.14.2 is " + NEWER.format("2.14.1")]),
        (("2.15.0.dev20270101+cpu", "5.0.0"), ["torch 2.15.0.dev20270101+cpu is " + NEWER.format("2.14.1")]),
        (("2.13.0", "6.0.0"), ["transformers 6.0.0 is " + NEWER.format("5.24.0")]),
        (("2.10.0", "5.0.0"), ["torch 2.10.0 is " + OLDER.format("2.11.0")]),
        (("2.13.0", "4.57.1"), ["transformers 4.57.1 is " + OLDER.format("5.0.0")]),
        (
            ("3.0.0", "4.57.1"),
            [
                "torch 3.0.0 is " + NEWER.format("2.14.1"),
                "transformers 4.57.1 is " + OLDER.format("5.0.0"),
            ],
        ),
    ],
)
def test_others_are_told_once(
    monkeypatch: pytest.MonkeyPatch, found: tuple[str, str], told: list[str]
) -> None:
    assert said(monkeypatch, *found) == [f"qfpass: {'; '.join(told)}. docs/versions.md says what to do."]


def test_importing_says_nothing() -> None:
    program = "import torch; torch.__version__ = '9.0'; import qfpass, qfpass.upstream.versions"
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", program], check=True)


def test_the_package_asks_for_the_oldest_that_was_tested() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {f"{name}>={TESTED[name][0].removesuffix('.0')}" for name in TESTED} <= set(asked)


def test_the_versions_that_are_installed_here_were_tested() -> None:
    pinned = dict(re.findall(r"^(\w+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    assert pinned.keys() == TESTED.keys()
    assert all(version in TESTED[name] for name, version in pinned.items())
