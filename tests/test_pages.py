"""README and site: tables are those of the records, links lead somewhere, nothing is left out."""

import copy
import inspect
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import qfpass
from qfpass import errors

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
sys.path.append(str(ROOT / "benchmarks"))
import scale  # noqa: E402
import tables  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    titles = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", tables.PAGES, ids=name_of)
def test_tables_are_those_of_the_records(page: Path) -> None:
    text = page.read_text()
    assert tables.MARKED.search(text)
    assert tables.with_tables(text) == text, "run `python benchmarks/tables.py`"


def test_scale_is_what_is_computed() -> None:
    text = scale.PAGE.read_text()
    assert scale.with_tables(text) == text, "run `python benchmarks/scale.py`"


def test_weights_are_counted_as_transformers_has_them() -> None:
    own = scale.MODELS[0]
    config = copy.deepcopy(own.config)
    config.num_hidden_layers = 2
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert replace(own, config=config).weights == sum(weight.numel() for weight in model.parameters())


def test_every_table_stands_in_a_page() -> None:
    named = {name for page in tables.PAGES for _, name, _ in tables.MARKED.findall(page.read_text())}
    assert named == set(tables.MAKERS)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCED.sub("", page.read_text())
    for there, anchor in LINK.findall(text):
        if there.startswith("http"):
            continue
        target = (page.parent / there).resolve() if there else page
        assert target.exists(), f"{name_of(page)} links to {there}"
        if anchor:
            assert anchor in anchors(target), f"{name_of(page)} links to {there}#{anchor}"


def test_every_error_has_its_cure() -> None:
    page = (DOCS / "reference" / "errors.md").read_text()
    kinds = {name for name, _ in inspect.getmembers(errors, inspect.isclass)} - {"QFPassError"}
    assert kinds == set(re.findall(r"^\| `(\w+Error)` \|", page, re.MULTILINE))


def test_every_public_name_stands_in_the_reference() -> None:
    page = (DOCS / "reference" / "api.md").read_text()
    left_out = {name for name in qfpass.__all__ if f":: qfpass.{name}\n" not in page}
    assert left_out <= {"QFPassError"}, left_out


def test_the_makefile_has_what_pages_name() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"`make ([a-z-]+)", page.read_text()))
        assert named <= targets, name_of(page)
