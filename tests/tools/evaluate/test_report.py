"""Records: uncompressed first, JSON that any reader takes, a table with budgets and spread."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qfpass.errors import InputError
from qfpass.tools import evaluate
from qfpass.tools.evaluate.footprint import Footprint
from qfpass.tools.evaluate.report import Evaluation, ResultRow

Ids = Callable[..., torch.Tensor]


def row(name: str, value: float = 1.5, error: float | None = 0.25) -> ResultRow:
    footprint = Footprint(None if name == "uncompressed" else 16, 2**20)
    return ResultRow(name, footprint, 3, {"perplexity": (value, error)}, {"per_text": [1.0, math.inf]})


def evaluation(*rows: ResultRow) -> Evaluation:
    return Evaluation("perplexity", "tiny", rows, {"seed": 7}, {"python": "3"})


def test_the_uncompressed_row_comes_first() -> None:
    assert evaluation(row("uncompressed"), row("recency 8x")).rows[0].name == "uncompressed"
    for rows in ((), (row("recency 8x"), row("uncompressed"))):
        with pytest.raises(InputError, match="uncompressed"):
            evaluation(*rows)


def test_compare_runs_every_model_in_order(model: nn.Module, random_ids: Ids) -> None:
    ids = random_ids(2, 40)
    models = evaluate.with_methods(model, [evaluate.Method("recency", budget=16)])
    made = evaluate.compare(
        "perplexity", "tiny", models, lambda m: evaluate.perplexity(m, ids, first=16), {"seed": 0}
    )
    plain, bounded = made.rows
    assert (plain.name, bounded.name) == ("uncompressed", "recency 16 slots")
    assert (plain.footprint.slots, bounded.footprint.slots) == (None, 16)
    assert plain.samples == 2
    own = evaluate.perplexity(model, ids, first=16)
    assert plain.measures["perplexity"] == (own.perplexity, own.standard_error)
    assert plain.details["per_text"] == own.per_text
    assert made.versions["torch"] == torch.__version__
    with pytest.raises(InputError, match="with_methods"):
        evaluate.compare("perplexity", "tiny", {"other": model}, lambda m: own, {})


def test_the_record_is_plain_json(tmp_path: Path) -> None:
    path = evaluation(row("uncompressed", error=None), row("recency 8x")).save(tmp_path / "new")
    read = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} isn't JSON"))
    assert path.name == "perplexity.json"
    assert read["settings"] == {"seed": 7}
    assert read["rows"][0]["measures"] == {"perplexity": [1.5, None]}
    assert read["rows"][0]["details"] == {"per_text": [1.0, None]}
    assert read["rows"][1]["footprint"] == {"slots": 16, "nbytes": 2**20}


def test_the_table_says_budget_spread_and_samples() -> None:
    lines = str(evaluation(row("uncompressed"), row("recency 8x", 2.0, None))).splitlines()
    (first,) = (line for line in lines if "uncompressed" in line)
    (second,) = (line for line in lines if "recency 8x" in line)
    assert lines.index(first) < lines.index(second)
    assert [cell.strip() for cell in first.split("│")[1:-1]] == [
        "uncompressed", "all", "1.00", "3", "1.500 ± 0.250",
    ]  # fmt: skip
    assert "16" in second and "2.000 " in second
    assert any("seed 7" in line for line in lines)


def test_a_table_of_many_measures_has_a_method_a_column() -> None:
    measures: Any = {f"task {i}": (i / 10, None) for i in range(8)}
    rows = [ResultRow(name, Footprint(16, 0), 8, measures, {}) for name in ("uncompressed", "recency 8x")]
    lines = str(evaluation(*rows)).splitlines()
    (head,) = (line for line in lines if "method" in line)
    assert head.index("uncompressed") < head.index("recency 8x")
    assert sum("task" in line for line in lines) == 8


@pytest.mark.parametrize("kind", ["perplexity", "needle", "ruler"])
def test_plots_are_pngs(tmp_path: Path, kind: str) -> None:
    grid = {"lengths": [10, 20], "depths": [0.0, 1.0], "partial": [[0.0, 1.0], [0.5, 0.25]]}
    rows: Any = [
        ResultRow(name, Footprint(None, 1), 3, {"exact": (0.5, 0.1), "partial": (0.6, None)}, {"grid": grid})
        for name in ("uncompressed", "recency 8x")
    ]
    path = evaluate.plot(Evaluation(kind, "tiny", tuple(rows), {}, {}), tmp_path / "new")
    assert path.name == f"{kind}.png"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="matplotlib"):
        evaluate.plot(evaluation(row("uncompressed")), tmp_path)
