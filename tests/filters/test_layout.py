"""Files of Q-Filters: round trips, atomic writes, and everything that must not be read."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from qfpass.errors import FilterFileError
from qfpass.filters import QFilters, layout

FIELDS = ("filters", "directions", "kappa", "mean_query")
sources = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def any_filters(draw: st.DrawFn) -> QFilters:
    size = st.integers(1, 5)
    shapes = draw(st.lists(st.tuples(size, size, size), min_size=1, max_size=12))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))

    def tensors(*, per_query: bool, rank: int) -> tuple[torch.Tensor, ...]:
        return tuple(
            torch.randn((heads * (group if per_query else 1), dim)[:rank], generator=generator)
            for heads, group, dim in shapes
        )

    def optional(rank: int) -> tuple[torch.Tensor, ...] | None:
        return tensors(per_query=True, rank=rank) if draw(st.booleans()) else None

    source = draw(st.dictionaries(st.text(), sources, max_size=3))
    filters = tensors(per_query=False, rank=2)
    return QFilters(filters, optional(2), optional(1), optional(2), source)


def small(value: float = 1.0, **source: object) -> QFilters:
    return QFilters((torch.full((2, 4), value),), kappa=(torch.full((2,), value),), source=source)


@given(any_filters())
@settings(max_examples=40, deadline=None)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, filters: QFilters) -> None:
    folder = tmp_path_factory.mktemp("filters")
    filters.save(folder)
    loaded = QFilters.load(folder)
    assert loaded.source == filters.source
    for name in FIELDS:
        before, after = getattr(filters, name), getattr(loaded, name)
        assert (before is None) == (after is None)
        torch.testing.assert_close(after or (), before or (), rtol=0, atol=0)


def test_json_describes_the_tensors(tmp_path: Path) -> None:
    small(tokens=7).save(tmp_path / "new" / "folder")
    description = json.loads((tmp_path / "new" / "folder" / "qfilters.json").read_text())
    assert description == {
        "format": "qfpass.qfilters/1",
        "shapes": {"filters.0": [2, 4], "kappa.0": [2]},
        "source": {"tokens": 7},
    }


def test_tensors_that_share_memory_or_are_strided_are_saved(tmp_path: Path) -> None:
    base = torch.randn(4, 4)
    filters = QFilters((base, base), directions=(base.T, base))
    filters.save(tmp_path)
    torch.testing.assert_close(QFilters.load(tmp_path).directions, (base.T, base), rtol=0, atol=0)


@pytest.mark.parametrize("renames_before_crash", [0, 1])
def test_a_crash_leaves_old_or_new_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, renames_before_crash: int
) -> None:
    small(1.0, tokens=1).save(tmp_path)
    rename, left = Path.replace, [renames_before_crash]

    def crash(self: Path, target: Path) -> Path:
        if not left[0]:
            raise OSError("power cut")
        left[0] -= 1
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(OSError, match="power cut"):
        small(2.0, tokens=2).save(tmp_path)
    loaded = QFilters.load(tmp_path)
    kept = 1.0 + renames_before_crash
    torch.testing.assert_close(loaded.filters[0], torch.full((2, 4), kept))
    assert loaded.source == {"tokens": int(kept)}
    assert [path.name for path in tmp_path.iterdir()] == ["qfilters.safetensors"]


def test_saving_keeps_the_other_files_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    small().save(tmp_path)
    small(2.0).save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"notes.txt", "qfilters.json", "qfilters.safetensors"}


def rewrite(folder: Path, tensors: dict[str, torch.Tensor] | None, description: str | None) -> None:
    small().save(folder)
    path = folder / "qfilters.safetensors"
    metadata = None if description is None else {"qfilters": description}
    tensors = load_file(path) if tensors is None else tensors
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path, metadata)


GOOD = json.dumps({"format": layout.FORMAT, "source": {}})
FILTER = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("tensors", "description", "message"),
    [
        (None, None, "not a file of Q-Filters"),
        (None, "{", "not a file of Q-Filters"),
        (None, "[]", "not a file of Q-Filters"),
        (None, json.dumps({"format": layout.FORMAT}), "not a file of Q-Filters"),
        (None, json.dumps({"format": layout.FORMAT, "source": 3}), "not a file of Q-Filters"),
        (None, json.dumps({"format": "qfpass.qfilters/99", "source": {}}), "qfilters/99"),
        ({"weight": FILTER}, GOOD, "belong to none"),
        ({"kappa.0": FILTER[0]}, GOOD, "belong to none"),
        ({"filters.0": FILTER, "kappa.1": FILTER[0]}, GOOD, "not a file of Q-Filters"),
        ({"filters.0": FILTER, "kappa.0": FILTER[0], "kappa.1": FILTER[0]}, GOOD, "belong to none"),
        ({"filters.0": FILTER, "other.0": FILTER}, GOOD, "does not hold Q-Filters"),
        ({"filters.0": FILTER.double()}, GOOD, "float64"),
        ({"filters.0": FILTER / 0}, GOOD, "not finite"),
    ],
)
def test_wrong_content_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor] | None, description: str | None, message: str
) -> None:
    rewrite(tmp_path, tensors, description)
    with pytest.raises(FilterFileError, match=message) as caught:
        QFilters.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["qfilters.safetensors", "model.safetensors"])
@given(keep=st.floats(0, 0.99))
@settings(max_examples=20, deadline=None)
def test_cut_files_are_refused(tmp_path_factory: pytest.TempPathFactory, name: str, keep: float) -> None:
    folder = tmp_path_factory.mktemp("cut")
    save_file({"q_filters": torch.ones(1, 2, 4)}, folder / "model.safetensors")
    small().save(folder)
    whole = (folder / name).read_bytes()
    if name == "model.safetensors":
        (folder / "qfilters.safetensors").unlink()
    (folder / name).write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(FilterFileError, match="can't be read as a safetensors file"):
        QFilters.load(folder)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model.layers.0.q_proj": torch.ones(2, 4)}, "not of the model"),
        ({"q_filters": torch.ones(1, 2, 4), "bias": torch.ones(1)}, "not of the model"),
        ({"q_filters": torch.ones(2, 4)}, r"\[2, 4\]"),
        ({"q_filters": torch.ones(1, 2, 4, dtype=torch.int32)}, "int32"),
        ({"q_filters": torch.ones(0, 2, 4)}, "at least one layer"),
        ({"q_filters": torch.full((1, 2, 4), torch.nan)}, "not finite"),
    ],
)
def test_wrong_published_content_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], message: str
) -> None:
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(FilterFileError, match=message):
        QFilters.load(tmp_path)
