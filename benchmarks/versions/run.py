"""qfpass with each pair of torch and transformers that it is for, in an environment of its own: make matrix

Each pair runs the tests of PARTS and SmolLM2's real weights (smollm2.py). What came of a pair is kept in
build/matrix/<pair>.json, and docs/versions.md is written from all that are there, so that pairs can be run
one at a time. Environments take up to 6 GB and are deleted after their run; KEEP=1 leaves them.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from page import write_page

from qfpass.upstream.versions import TESTED

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("llama", "mistral", "qwen3", "gemma3", "phi3", "gpt2", "gptj", "gpt_oss")
PARTS = {
    "canaries": ["tests/upstream"],
    "equality": ["tests/test_families.py", "tests/test_eviction.py", "tests/proof/test_verify.py"],
    "sessions": ["tests/sessions/test_session.py", "tests/decoder/test_padding.py"],
    "generate": ["tests/model/test_compiled_decoder.py", "tests/model/test_integrations.py"],
    "torch.compile": ["tests/test_torch_backend.py"],
    "Inductor": [f"tests/test_inductor.py::test_equals_the_eager_backend[{name}]" for name in FAMILIES],
}
SMOLLM2 = "SmolLM2"
TOOLS = ("accelerate", "hypothesis", "pytest", "pytest-xdist")  # what the tests need beside qfpass


def pairs() -> dict[tuple[str, str], list[str]]:
    """What each pair is, by (torch, transformers); one that is several things runs once."""
    pinned = dict(re.findall(r"^(\w+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    torch, transformers = TESTED["torch"], TESTED["transformers"]
    found = dict[tuple[str, str], list[str]]()
    for what, pair in (
        ("the oldest of both", (torch[0], transformers[0])),
        ("the pinned pair", (pinned["torch"], pinned["transformers"])),
        ("the transformers before, with the pinned torch", (pinned["torch"], transformers[-2])),
        ("the newest transformers, with the pinned torch", (pinned["torch"], transformers[-1])),
        ("the newest of both", (torch[-1], transformers[-1])),
    ):
        found.setdefault(pair, []).append(what)
    return found


def name_of(pair: tuple[str, str]) -> str:
    """Of the files and folders of a pair."""
    return f"torch-{pair[0]}-transformers-{pair[1]}"


@contextmanager
def environment(pair: tuple[str, str], folder: Path) -> Iterator[Path]:
    """The Python of a fresh environment with this pair and qfpass."""
    print(f"making {folder}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    python = folder / "bin" / "python"
    torch, transformers = pair
    pip = [python, "-m", "pip", "install", "--quiet"]
    try:
        # torch first, so that no other package pulls a build of its own choice.
        for wanted in (["--upgrade", "pip"], [f"torch=={torch}"]):
            subprocess.run([*pip, *wanted], check=True)
        versions = [f"torch=={torch}", f"transformers=={transformers}"]
        subprocess.run([*pip, *versions, "-e", str(ROOT), *TOOLS], check=True)
        yield python
    finally:
        if os.environ.get("KEEP") != "1":
            shutil.rmtree(folder)


def versions_in(python: Path) -> dict[str, str]:
    """What is installed beside this Python."""
    program = (
        "import json; from importlib.metadata import version; "
        "print(json.dumps({n: version(n) for n in ('torch', 'transformers', 'huggingface_hub')}))"
    )
    done = subprocess.run([python, "-c", program], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def run_tests(python: Path, tests: list[str], settings: dict[str, str], scratch: Path) -> dict[str, Any]:
    """How many passed, failed and were skipped, and which failed."""
    results = scratch / "results.xml"
    results.unlink(missing_ok=True)
    subprocess.run(
        [python, "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", "-p", "no:cacheprovider",
         f"--junitxml={results}", *tests],
        cwd=ROOT, env=settings,
    )  # fmt: skip
    if not results.exists():
        return {"passed": 0, "failed": 1, "skipped": 0, "failures": ["pytest itself"]}
    cases = list(ElementTree.parse(results).iter("testcase"))
    failures = [
        f"{case.get('classname')}.{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "passed": len(cases) - len(failures) - skipped,
        "failed": len(failures),
        "skipped": skipped,
        "failures": failures,
    }


def run_smollm2(python: Path, settings: dict[str, str], scratch: Path) -> dict[str, Any]:
    """What smollm2.py finds, or that it failed."""
    out = scratch / "smollm2.json"
    done = subprocess.run([python, Path(__file__).with_name("smollm2.py"), out], cwd=ROOT, env=settings)
    return json.loads(out.read_text()) if done.returncode == 0 else {"failed": True}


def run_pair(python: Path, parts: list[str]) -> dict[str, Any]:
    """Every part in the environment of this Python, with Inductor's caches empty."""
    found: dict[str, Any] = {"versions": versions_in(python)}
    print(found["versions"], flush=True)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        settings = os.environ | {
            "PYTHONPATH": str(ROOT),
            "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
        }
        for part in parts:
            print(f"{part} ...", flush=True)
            if part == SMOLLM2:
                found[part] = run_smollm2(python, settings, scratch)
            else:
                found[part] = run_tests(python, PARTS[part], settings, scratch)
    return found


def main() -> None:
    """Run the pairs that are asked for, one after the other, then write the page."""
    everything = [*PARTS, SMOLLM2]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pair", action="append", choices=[name_of(pair) for pair in pairs()])
    parser.add_argument("--part", action="append", choices=everything, help="by default all")
    parser.add_argument("--python", type=Path, help="of a ready environment, for a single --pair")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "matrix")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "versions.md")
    asked = parser.parse_args()
    if asked.python and len(asked.pair or ()) != 1:
        parser.error("--python is for one --pair")
    asked.out.mkdir(parents=True, exist_ok=True)
    for pair in pairs():
        if asked.pair and name_of(pair) not in asked.pair:
            continue
        parts = asked.part or everything
        if asked.python:
            found = run_pair(asked.python, parts)
        else:
            with environment(pair, asked.out / name_of(pair)) as python:
                found = run_pair(python, parts)
        installed = tuple(found["versions"][name].partition("+")[0] for name in ("torch", "transformers"))
        if installed != pair:
            sys.exit(f"asked for {pair}, but there is {installed}")
        (asked.out / f"{name_of(pair)}.json").write_text(json.dumps(found, indent=2))
    results = {
        pair: json.loads(file.read_text())
        for pair in pairs()
        if (file := asked.out / f"{name_of(pair)}.json").exists()
    }
    write_page(asked.page, pairs(), results, list(PARTS), SMOLLM2)


if __name__ == "__main__":
    main()
