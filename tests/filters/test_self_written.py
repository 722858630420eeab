"""Filters from text that the model writes itself."""

from pathlib import Path

import pytest
from decoders import POSITIONS, decoder

import qfpass


@pytest.mark.parametrize(("context_length", "tokens"), [(POSITIONS, 10), (7, 7)])
def test_positions_cover_the_context(
    context_length: int, tokens: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("QFPASS_CACHE", str(tmp_path))
    monkeypatch.setattr("qfpass.choose_filters.TOKENS", 10)
    # Its positions are looked up in a table, which has no others.
    qfpass.compile(decoder(), budget=6, sinks=1, context_length=context_length, backend="eager")
    (folder,) = (tmp_path / "filters").iterdir()
    source = qfpass.QFilters.load(folder).source
    assert (source["sequence_length"], source["context_length"]) == (tokens, context_length)
    assert source["tokens"] == 8 * tokens
