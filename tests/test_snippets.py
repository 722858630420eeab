"""Pages that begin in the middle: their Python runs with what they take for granted, their commands parse."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import recipes
import torch
from test_recipes import PAGES, ROOT, in_folder, instead, parse_commands, tiny  # noqa: F401  (fixtures)
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import qfpass
from qfpass.kernels import reference
from qfpass.rewriting.uncompressed import keep_all

DOCS = ROOT / "docs"
SITE = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
# By test_tensor_parallel.py in two processes, model/test_pool_page.py, vision_language/test_page.py.
ELSEWHERE = {"several_devices", "pool", "vision_language"}
NAMES = {
    "MODEL": "model",
    "TEXTS": "book.txt",
    "HELD_OUT": "book.txt",
    "FILTERS": "filters",
    "FOLDER": "folder",
}


class Given(NamedTuple):
    """What a page takes for granted, and what stands in the place of some of its words."""

    names: dict[str, Any]
    instead: dict[str, str] = {}  # noqa: RUF012


def original(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder / "tiny").eval()


def bounded(folder: Path) -> Any:
    return qfpass.compile(original(folder), ratio=8, score="recency", backend="eager")


def text(tokens: int, rows: int = 1) -> Tensor:
    return torch.randint(4, 300, (rows, tokens), generator=torch.Generator().manual_seed(0))


def whole(folder: Path) -> dict[str, Any]:
    """A compiled model and its tokenizer, by the names that pages have."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny")
    return {"qfpass": qfpass, "torch": torch, "model": bounded(folder), "tokenizer": tokenizer}


def headless(folder: Path) -> Given:
    filters = qfpass.calibrate(original(folder), [text(40)[0]])
    filters.save(folder / "filters-of-the-page")
    words = {"name": str(folder / "tiny"), "folder": folder / "filters-of-the-page", "ids": text(20)}
    eager = {".eval(), ratio=8": '.eval(), backend="eager", ratio=8', "max_new_tokens=50": "max_new_tokens=3"}
    return Given(
        whole(folder) | words | {"question": text(5), "mask": torch.ones_like(words["ids"])},
        eager,
    )


def own_parts(folder: Path) -> Given:
    words = whole(folder) | {"model": original(folder), "NamedTuple": NamedTuple, "Tensor": Tensor}
    return Given(
        words | {"attend": reference.attend, "ids": text(200, 2), "keep_all": keep_all},
        {"model = qfpass.compile(": "compiled = qfpass.compile("},
    )


GIVEN: dict[str, Callable[[Path], Given]] = {
    "embeddings": headless,
    "quantised_weights": lambda folder: Given(
        whole(folder) | {"name": folder / "tiny", "AutoModelForCausalLM": AutoModelForCausalLM}
    ),
    "serving": lambda folder: Given(
        whole(folder) | {"ids": text(20)[0].tolist(), "eos": 0},
        {"max_new_tokens=200": "max_new_tokens=5", "rows=16": "rows=2"},
    ),
    "sessions": lambda folder: Given(whole(folder) | {"ids": text(100)}),
    "the_pass": own_parts,
    "torch_compile": lambda folder: Given(whole(folder) | {"model": original(folder), "prompt": text(40)}),
}
TRAINED = {"trained_filters"}  # trains for minutes; tests/training calls it so


@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize("name", GIVEN)
def test_a_page_runs(name: str) -> None:
    folder = Path.cwd()
    given = GIVEN[name](folder)
    recipes.run_page(DOCS / f"{name}.md", instead(folder) | given.instead, given.names)


def test_no_page_is_left_out() -> None:
    """Each page with Python runs here, in test_recipes or in a test that is named above."""
    with_python = {
        page.stem
        for page in SITE
        if page not in PAGES and any(block.kind == recipes.PYTHON for block in recipes.blocks_of(page))
    }
    assert with_python == {*GIVEN, *ELSEWHERE, *TRAINED, "README", "start", "taking_back"}


@pytest.mark.usefixtures("in_folder")
@pytest.mark.parametrize("page", SITE, ids=lambda page: page.stem)
def test_commands_of_a_page_parse(page: Path) -> None:
    """Those that stand in blocks, and those within sentences that name a model."""
    blocks = [block.text for block in recipes.blocks_of(page) if block.kind in ("", recipes.SERVER)]
    commands = re.findall(r"^(qfpass [^#\n]+)", "\n".join(blocks), re.MULTILINE)
    commands += re.findall(r"`(qfpass [a-z]+ (?:[a-z]+ )?MODEL[^`]*)`", page.read_text())
    for command in commands:
        line = re.sub(r"\b[A-Z_]{5,}\b", lambda found: NAMES[found[0]], " ".join(command.split()))
        parse_commands(line)
