"""Texts from files, and rows of tokens."""

from pathlib import Path
from typing import Any

import pytest

from qfpass.errors import InputError
from qfpass.tools import evaluate


def test_a_folder_is_its_text_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "c.bin").write_bytes(b"\xff")
    assert evaluate.read_text(tmp_path) == "first\n\nsecond"
    assert evaluate.read_text(tmp_path / "b.txt") == "second"


def test_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="can't read"):
        evaluate.read_text(tmp_path / "missing.txt")
    with pytest.raises(InputError, match="can't read"):
        evaluate.read_text(tmp_path)
    with pytest.raises(InputError, match="holds no text"):
        evaluate.read_text(tmp_path / "empty")


def test_rows_are_pieces_of_the_text_that_do_not_overlap(tokenizer: Any, essays: str) -> None:
    ids = tokenizer(essays, add_special_tokens=False).input_ids
    rows = evaluate.token_rows(tokenizer, essays, tokens=100, rows=5, seed=1)
    places = [i for row in rows.tolist() for i in range(0, len(ids), 100) if ids[i : i + 100] == row]
    assert len(places) == len(set(places)) == 5
    again, other = (evaluate.token_rows(tokenizer, essays, tokens=100, rows=5, seed=s) for s in (1, 2))
    assert rows.tolist() == again.tolist() != other.tolist()
    with pytest.raises(InputError, match="too few for 5 pieces"):
        evaluate.token_rows(tokenizer, essays, tokens=10_000, rows=5)
