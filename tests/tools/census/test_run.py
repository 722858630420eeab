"""Every family in a process of its own, and the page that tells of all."""

from pathlib import Path

import pytest

from qfpass.errors import ConfigError
from qfpass.tools.census import Entry, census, page
from qfpass.tools.census.command import run_census


def test_a_family_that_hangs_or_fails_is_an_entry() -> None:
    entries = {e.family: e for e in census(["llama", "no_such_family"], {}, jobs=2, time_limit=0.5)}
    assert entries["llama"].outcome == "crashed"
    assert "more than" in entries["llama"].note
    assert set(entries) == {"llama", "no_such_family"}


def test_the_page_tells_every_outcome() -> None:
    text = page(
        [
            Entry("one", "OneForCausalLM", "works", sites=2, spans=("causal", "causal, window 8")),
            Entry("two", "TwoForCausalLM", "refused", "its mask | is odd"),
        ]
    )
    assert "Of the 2 entries" in text and "1 work, 1 refused" in text
    assert "| one | OneForCausalLM | 2 | causal; causal, window 8 |" in text
    assert r"| two | TwoForCausalLM | its mask \| is odd |" in text
    assert "Crashed" not in text


def test_unknown_families_are_refused() -> None:
    with pytest.raises(ConfigError, match="no causal language model called nothing"):
        run_census(["nothing"])


def test_unreadable_configurations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="as JSON"):
        run_census(["llama"], configs=tmp_path / "none.json")
