"""Records: JSON that joins, a table that says the bound, plots of every measure."""

import json
from pathlib import Path

import pytest

from qfpass.errors import InputError
from qfpass.tools.bench.plots import PLOTS, plot
from qfpass.tools.bench.record import Figure, Record


def figure(measure: str = "decode", contender: str = "a", tokens: int = 512, value: float = 3.0) -> Figure:
    return Figure(measure, contender, "float32", 1, tokens, "ms", value, 2.5, 3.5, 9, 16, 2.0)


def test_records_of_a_folder_join(tmp_path: Path) -> None:
    first, second = figure(), figure("steady", tokens=1024)
    Record((second,), {"model": "tiny"}).save(tmp_path / "new" / "b.json")
    Record((first,)).save(tmp_path / "new" / "a.json")
    joined = Record.join(tmp_path / "new")
    assert joined.figures == (first, second)
    assert joined.of("steady", tokens=1024) == [second] and joined.of("steady", tokens=1) == []
    read = json.loads((tmp_path / "new" / "b.json").read_text())
    assert read["settings"] == {"model": "tiny"} and read["machine"]["cores"] and read["versions"]["torch"]


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"figures": [{"measure": "decode"}]}')
    with pytest.raises(InputError, match=r"a\.json holds no benchmark figures"):
        Record.join(tmp_path)


def test_the_table_says_how_far_the_bound_is() -> None:
    lines = str(Record((figure(),))).splitlines()
    (row,) = (line for line in lines if "512" in line)
    assert [c.strip() for c in row.strip("│ ").split("│")] == [
        "float32", "1", "512", "16", "a", "3.0", "2.5 to 3.5", "ms", "9", "2.0", "1.50x",
    ]  # fmt: skip


def test_every_measure_has_a_plot(tmp_path: Path) -> None:
    figures = [figure(m, tokens=n, value=n / 100) for m in PLOTS for n in (512, 1024)]
    figures.append(Figure("decode", "reading memory", "float32", 1, 0, "GB/s", 15.0))
    figures.append(Figure("decode", "another program", "q4_1", 1, 512, "ms", 15.0))
    paths = plot(Record(tuple(figures)), tmp_path)
    assert {p.name for p in paths} == {f"{m.replace(' ', '-')}-float32.png" for m in PLOTS}
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths)
