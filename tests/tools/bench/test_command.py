"""`qfpass bench` on a tiny model in a folder."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qfpass.errors import ConfigError
from qfpass.tools import cli
from qfpass.tools.bench.setup import Setup


def run(*words: Any) -> Any:
    return CliRunner().invoke(cli.app, ["bench", *map(str, words)], catch_exceptions=False)


def test_it_leaves_records_a_table_and_plots(setup: Setup, tmp_path: Path) -> None:
    words = [setup.model, "--measure", "decode", "--measure", "prefill", "--seen", 60, "--slots", 16]
    words += ["--batch", 1, "--whole", 20, "--rounds", 2, "--seconds", 0, "--score", "recency"]
    words += ["--backend", "eager", "--without", "compiled", "--without", "static", "--out", tmp_path]
    result = run(*words)
    assert result.exit_code == 0
    assert {p.name for p in tmp_path.iterdir()} == {
        "decode-float32.json", "decode-float32.png", "prefill-float32.json", "prefill-float32.png",
    }  # fmt: skip
    record = json.loads((tmp_path / "decode-float32.json").read_text())
    assert record["settings"]["tokens"] == [60] and record["settings"]["score"] == "recency"
    assert {f["contender"] for f in record["figures"]} == {
        "DynamicCache, eager", "qfpass, ratio 1", "qfpass, 16 slots", "qfpass, 16 slots without eviction",
        "reading memory",
    }  # fmt: skip
    drawn_again = run("--out", tmp_path)
    assert drawn_again.exit_code == 0 and "qfpass, ratio 1" in drawn_again.output


@pytest.mark.parametrize("words", [["--measure", "speed"], ["--without", "ours"]])
def test_unknown_names_are_refused(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="choose from"):
        run("model", *words, "--out", tmp_path)
