"""Every family in a process of its own, the record, and the page that tells of all."""

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from qfpass.errors import ConfigError
from qfpass.tools.census import (
    COLUMNS,
    Entry,
    Inquiry,
    Verdict,
    census,
    inquiry,
    page,
    read_record,
    write_record,
)
from qfpass.tools.census.command import run_census

DOCS = Path(__file__).parents[3] / "docs"
LLAMA = Entry(
    "llama", "LlamaForCausalLM", "works", sites=2, spans=("causal",),
    answers={"embeddings": Verdict("yes"), "drafts": Verdict("refused", "it's odd")},
)  # fmt: skip
LLAVA = Entry("llava", "LlavaForConditionalGeneration", "refused", "it | is odd", kind="image-text")


def test_a_family_that_hangs_or_fails_is_an_entry() -> None:
    asked = [inquiry(Entry(name, "", ""), (), True, {}) for name in ("llama", "no_such_family")]
    entries = {e.family: e for e in census(asked, jobs=2, time_limit=0.5)}
    assert entries["llama"].outcome == "crashed"
    assert "more than" in entries["llama"].note
    assert set(entries) == {"llama", "no_such_family"}


def test_a_column_that_hangs_leaves_the_others() -> None:
    run = import_module("qfpass.tools.census.run")
    asked = inquiry(LLAMA, ("drafts", "int8"), False, {})
    assert asked.entry.answers == {"embeddings": Verdict("yes")}

    class Process:
        def join(self) -> None: ...

    ended = run._Running(asked, Process(), 0.0).end("it took more than 3 seconds")
    assert ended.outcome == "works" and ended.answers["embeddings"] == Verdict("yes")
    assert ended.answers["drafts"] == Verdict("crashed", "it took more than 3 seconds")
    assert "drafts came before" in ended.answers["int8"].note
    assert ended.is_bad and not LLAMA.is_bad


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    assert read_record(record) == []
    write_record(record, [LLAMA, LLAVA])
    assert read_record(record) == [LLAMA, LLAVA]
    record.write_text("[{}]")
    with pytest.raises(ConfigError, match="as a record"):
        read_record(record)


def test_the_page_tells_every_outcome() -> None:
    text = page([LLAMA, LLAVA])
    assert "Of 1 families: works 1. Yes in each column: embeddings 1 of 1, drafts 0 of 1" in text
    assert "| llama | LlamaForCausalLM | 2 | causal | yes | no |  |" in text
    assert "| llama | LlamaForCausalLM | drafts | it's odd |" in text
    assert r"| llava | LlavaForConditionalGeneration | it \| is odd |" in text
    assert "crash" not in text


def test_a_defect_stands_out() -> None:
    wrong = Entry("odd", "OddForCausalLM", "works", answers={"int8": Verdict("wrong", "logits differ")})
    text = page([wrong])
    assert "|  |  | **wrong** |" in text and "| int8 | **wrong**: logits differ |" in text


def test_the_page_is_that_of_the_record() -> None:
    entries = read_record(DOCS / "models.json")
    assert (DOCS / "models.md").read_text() == page(entries), "run `qfpass census` with --record and --out"
    assert not any(entry.is_bad for entry in entries)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Inquiry]:
    """What the command asks; each answer is yes."""
    inquiries = list[Inquiry]()

    def answer(given: Sequence[Inquiry], *_: Any) -> Iterator[Entry]:
        inquiries.extend(given)
        for entry, columns, *_ in given:
            answers = {**entry.answers, **dict.fromkeys(columns, Verdict("yes"))}
            yield Entry(entry.family, "Made", "works", kind=entry.kind, answers=answers)

    monkeypatch.setattr(import_module("qfpass.tools.census.command"), "census", answer)
    return inquiries


def test_some_columns_of_some_families_are_put_into_the_record(tmp_path: Path, asked: list[Inquiry]) -> None:
    record, out = tmp_path / "record.json", tmp_path / "page.md"
    write_record(record, [LLAMA, LLAVA])
    run_census(["llama", "llava", "opt"], columns=["drafts"], record=record, out=out)
    assert [(each.entry.family, each.whole) for each in asked] == [("llama", False), ("opt", True)]
    entries = {entry.family: entry for entry in read_record(record)}
    assert entries["llama"].answers == {"embeddings": Verdict("yes"), "drafts": Verdict("yes")}
    assert entries["llava"] == LLAVA
    assert list(entries) == ["llama", "opt", "llava"]  # as transformers lists them
    assert "| opt | Made |" in out.read_text()


def test_what_the_record_has_is_left_out(tmp_path: Path, asked: list[Inquiry]) -> None:
    record = tmp_path / "record.json"
    write_record(record, [LLAMA, LLAVA])
    run_census(["llama", "llava", "opt"], record=record, missing=True)
    assert [(each.entry.family, each.columns, each.whole) for each in asked] == [
        ("llama", ["int8"], False), ("opt", list(COLUMNS), True),
    ]  # fmt: skip


def test_unknown_families_and_columns_are_refused() -> None:
    with pytest.raises(ConfigError, match="no family of decoders called nothing"):
        run_census(["nothing"])
    with pytest.raises(ConfigError, match="no column nothing"):
        run_census(["llama"], columns=["nothing"])


def test_unreadable_configurations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="as JSON"):
        run_census(["llama"], configs=tmp_path / "none.json")
