"""QFilters: construction, comparison with a model, devices, and reading by folder or name."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from qfpass.errors import ConfigError, FilterFileError, FilterMismatchError
from qfpass.filters import QFilters


class Layer(NamedTuple):
    query_heads: int
    kv_heads: int
    head_dim: int


MODEL = [Layer(4, 2, 8), Layer(4, 2, 8), Layer(6, 1, 16)]


def full(layers: list[Layer] = MODEL, source: dict | None = None) -> QFilters:
    torch.manual_seed(0)
    return QFilters(
        filters=tuple(torch.randn(x.kv_heads, x.head_dim) for x in layers),
        directions=tuple(torch.randn(x.query_heads, x.head_dim) for x in layers),
        kappa=tuple(torch.rand(x.query_heads) for x in layers),
        mean_query=tuple(torch.randn(x.query_heads, x.head_dim) for x in layers),
        source=source or {},
    )


def published(folder: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    torch.manual_seed(1)
    parameter = torch.randn(3, 2, 8).to(dtype)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"q_filters": parameter}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"num_layers": 3, "num_kv_heads": 2, "kv_head_dim": 8}')
    return parameter


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("filters", ()),
        ("filters", (torch.ones(2, 8),) * 2),
        ("filters", (torch.ones(3, 8),) * 3),
        ("filters", (torch.ones(2, 0),) * 3),
        ("filters", (torch.ones(2, 8, dtype=torch.bfloat16),) * 3),
        ("directions", (torch.ones(4, 8),) * 2),
        ("directions", ()),
        ("directions", (torch.ones(4, 9),) * 3),
        ("kappa", (torch.ones(4, 8),) * 3),
        ("kappa", (torch.ones(2),) * 3),
        ("mean_query", (torch.ones(2, 8),) * 3),
        ("mean_query", (torch.tensor(1.0),) * 3),
        ("source", {"when": object()}),
    ],
)
def test_refuses_what_does_not_fit_together(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="Q-Filters"):
        dataclasses.replace(full([Layer(4, 2, 8)] * 3), **{field: value})


def test_check_accepts_the_model_it_was_made_for() -> None:
    full().check(MODEL)
    QFilters(full().filters).check(MODEL)  # no query heads known, so none can disagree


@pytest.mark.parametrize(
    ("model", "shown"),
    [
        (MODEL[:2], "model:   2 layers: 2 of 4 query heads, 2 key/value heads, head dimension 8"),
        ([*MODEL, MODEL[0]], "model:   4 layers"),
        ([*MODEL[:2], Layer(6, 1, 8)], "1 of 6 query heads, 1 key/value heads, head dimension 8"),
        ([*MODEL[:2], Layer(6, 2, 16)], "1 of 6 query heads, 2 key/value heads"),
        ([*MODEL[:2], Layer(12, 1, 16)], "1 of 12 query heads, 1 key/value heads"),
        ([], "model:   0 layers: none"),
    ],
)
def test_check_shows_both_sides(model: list[Layer], shown: str) -> None:
    with pytest.raises(FilterMismatchError) as caught:
        full(source={"model": "tiny"}).check(model)
    assert shown in str(caught.value)
    assert "filters: 3 layers: 2 of 4 query heads" in str(caught.value)
    assert "tiny" in str(caught.value)


def test_check_of_published_filters_still_compares_key_heads() -> None:
    with pytest.raises(FilterMismatchError, match="filters: 3 layers: 2 of 2 key/value heads"):
        QFilters(full().filters).check([Layer(4, 4, 8), *MODEL[1:]])


def test_to_moves_every_tensor() -> None:
    moved = full().to("meta")
    for name in ("filters", "directions", "kappa", "mean_query"):
        assert {tensor.device.type for tensor in getattr(moved, name)} == {"meta"}
    assert QFilters(full().filters).to("meta").directions is None


@pytest.mark.cuda
def test_saved_from_the_gpu_and_back(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    full().to("cuda").save(tmp_path)
    torch.testing.assert_close(QFilters.load(tmp_path).to("cuda").filters[2].cpu(), full().filters[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_published_filters_are_turned_round(tmp_path: Path, dtype: torch.dtype) -> None:
    parameter = published(tmp_path / "tiny_qfilt", dtype)
    loaded = QFilters.load(tmp_path / "tiny_qfilt")
    assert loaded.directions is None and loaded.kappa is None and loaded.mean_query is None
    key = torch.randn(2, 8)
    for layer, filters in enumerate(loaded.filters):
        score = (key * filters).sum(-1)
        torch.testing.assert_close(score, -(parameter[layer].float() * key).sum(-1))
    loaded.save(tmp_path / "ours")
    torch.testing.assert_close(QFilters.load(tmp_path / "ours").filters, loaded.filters)


def test_our_own_layout_comes_first(tmp_path: Path) -> None:
    published(tmp_path)
    full().save(tmp_path)
    assert QFilters.load(str(tmp_path)).kappa is not None


def test_repository_is_fetched_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--someone--tiny_qfilt" / "snapshots" / "abc123"
    parameter = published(snapshot)
    asked = []

    def download(repository: str, filename: str, **_: object) -> str:
        asked.append((repository, filename))
        if not (snapshot / filename).exists():
            raise LocalEntryNotFoundError("not here")
        return str(snapshot / filename)

    def ask(url: str, timeout: float) -> None:
        raise ConnectionError("the cable is out")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)
    loaded = QFilters.load("someone/tiny_qfilt")
    assert asked == [("someone/tiny_qfilt", name) for name in ("qfilters.safetensors", "model.safetensors")]
    torch.testing.assert_close(torch.stack(loaded.filters), -parameter)
    assert loaded.source == {
        "layout": "published",
        "repository": "someone/tiny_qfilt",
        "revision": "abc123",
    }


def test_unreachable_repository_is_told_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("not here")

    def ask(*_: object, **__: object) -> None:
        raise ConnectionError("the cable is out")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)
    with pytest.raises(FilterFileError, match=r"(?s)someone/tiny_qfilt.*the cable is out"):
        QFilters.load("someone/tiny_qfilt")


def test_neither_folder_nor_repository(tmp_path: Path) -> None:
    (tmp_path / "a_file").write_text("x")
    for place in (tmp_path, tmp_path / "missing", tmp_path / "a_file", "no-such-name"):
        with pytest.raises(FilterFileError, match="No filters at"):
            QFilters.load(place)
