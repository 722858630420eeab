"""The package as it is installed: its names, its files, and what importing it brings along."""

import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

import qfpass

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# What `import qfpass` adds to torch and transformers: those import other things in other versions.
ADDED = """
import sys, torch, transformers
before = set(sys.modules)
import qfpass
print(*sorted(set(sys.modules) - before))
"""
# Slow to import, or for a few commands only.
NOT_WANTED = (
    "huggingface_hub.hf_api",
    "qfpass.tools.bench",
    "qfpass.tools.census",
    "qfpass.tools.cli",
    "qfpass.tools.evaluate",
    "qfpass.training",
    "sympy",
    "torch._dynamo",
    "torch._inductor",
    "transformers.modeling_utils",
)


def run(program: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-c", program]
    return subprocess.run(command, check=True, capture_output=True, text=True)


def test_importing_it_says_nothing() -> None:
    done = run("import qfpass")
    assert (done.stdout, done.stderr) == ("", "")


def test_importing_it_is_light() -> None:
    added = run(ADDED).stdout.split()
    assert "qfpass.pipeline" in added
    parts = [(name, name + ".") for name in NOT_WANTED]
    assert [m for m in added for name, inside in parts if m == name or m.startswith(inside)] == []


def test_what_is_imported_later_is_there() -> None:
    program = """
import qfpass
from qfpass import train
from qfpass.tools import evaluate
assert callable(qfpass.compile) and qfpass.train is train and train.__name__ == "train"
assert callable(evaluate.perplexity)
"""
    run(program)


def test_every_name_is_there() -> None:
    assert set(qfpass.__all__) <= set(dir(qfpass))
    assert all(getattr(qfpass, name) is not None for name in qfpass.__all__)
    with pytest.raises(AttributeError, match="no attribute 'complie'"):
        qfpass.complie  # noqa: B018


def test_the_version_is_written_once() -> None:
    assert qfpass.__version__ == PROJECT["project"]["version"]


def test_the_metadata_says_what_it_is() -> None:
    project = PROJECT["project"]
    assert project["urls"] and project["keywords"]
    assert "Typing :: Typed" in project["classifiers"]
    oldest = project["requires-python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {oldest}" in project["classifiers"]


def test_the_wheel_has_every_file() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["qfpass"]
    folder = ROOT / "qfpass"
    others = [file for file in folder.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")]
    names = {str(file.relative_to(folder)) for file in others}
    assert "py.typed" in names
    assert {name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)} == set()


def test_make_reads_the_makefile_and_knows_what_ci_asks_for() -> None:
    asked = [
        line.split()[1]
        for line in (ROOT / ".ci" / "run").read_text().splitlines()
        if line.startswith("make ")
    ]
    subprocess.run(["make", "--dry-run", "demo", *asked], cwd=ROOT, check=True, capture_output=True)
