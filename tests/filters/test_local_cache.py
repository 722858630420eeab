"""Fingerprints, the cache of filters, and published filters of a model's name."""

import importlib
import logging
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import (
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors.torch import save_file

from qfpass.errors import FilterFileError
from qfpass.filters import QFilters, cache_folder, find_cached, find_on_hub, store_cached


class Layer(NamedTuple):
    query_heads: int
    kv_heads: int
    head_dim: int


LAYERS = [Layer(4, 2, 8)] * 2
FINGERPRINT = "0123456789abcdef"


def weights(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed": (50, 32), "q_proj": (32, 32), "norm": (32,), "scale": (), "none": (0, 4)}
    return {name: torch.randn(s, generator=generator).to(dtype) for name, s in shapes.items()}


def small(**source: object) -> QFilters:
    return QFilters((torch.ones(2, 8), torch.ones(2, 8)), source=source)


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("QFPASS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert cache_folder() == cache
    monkeypatch.setenv("QFPASS_CACHE", "~/elsewhere")
    assert cache_folder() == Path.home() / "elsewhere"
    for unset in (lambda: monkeypatch.setenv("QFPASS_CACHE", ""), lambda: monkeypatch.delenv("QFPASS_CACHE")):
        unset()
        assert cache_folder().is_absolute() and "qfpass" in cache_folder().parts


def test_cache_round_trip(cache: Path) -> None:
    assert find_cached(FINGERPRINT) is None
    filters = small(fingerprint=FINGERPRINT, tokens=5)
    assert store_cached(filters) == cache / "filters" / FINGERPRINT
    found = find_cached(FINGERPRINT)
    assert found is not None and found.source == filters.source
    torch.testing.assert_close(found.filters, filters.filters)
    assert find_cached("fedcba9876543210") is None


def test_first_save_cut_short_counts_as_nothing(cache: Path) -> None:
    folder = cache / "filters" / FINGERPRINT
    folder.mkdir(parents=True)
    (folder / ".qfilters.safetensors.1234").write_bytes(b"half")
    assert find_cached(FINGERPRINT) is None


def test_broken_entry_names_the_folder_to_delete() -> None:
    folder = store_cached(small(fingerprint=FINGERPRINT))
    (folder / "qfilters.safetensors").write_bytes(b"broken")
    with pytest.raises(FilterFileError, match="Delete the folder") as caught:
        find_cached(FINGERPRINT)
    assert str(folder) in str(caught.value)


def test_entry_of_another_model_is_refused(cache: Path) -> None:
    small(fingerprint="ffffffffffffffff").save(cache / "filters" / FINGERPRINT)
    with pytest.raises(FilterFileError, match="'ffffffffffffffff'"):
        find_cached(FINGERPRINT)


@pytest.mark.parametrize("source", [{}, {"fingerprint": "../../outside"}, {"fingerprint": 12}])
def test_storing_needs_a_fingerprint(source: dict) -> None:
    with pytest.raises(FilterFileError, match="fingerprint"):
        store_cached(small(**source))


def test_cache_that_can_not_be_written(cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(FilterFileError, match="set QFPASS_CACHE"):
        store_cached(small(fingerprint=FINGERPRINT))


def serve(monkeypatch: pytest.MonkeyPatch, tensors: dict[str, torch.Tensor], tmp_path: Path) -> Path:
    """A local folder that stands for the repository nthngdy/tiny_qfilt in the hub's cache."""
    repository = tmp_path / "models--nthngdy--tiny_qfilt"
    snapshot = repository / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    save_file(tensors, snapshot / "model.safetensors")

    def download(name: str, filename: str, **_: object) -> str:
        assert name == "nthngdy/tiny_qfilt"
        return str(snapshot / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return repository


def unreachable(monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[str]:
    """A hub with nothing cached that answers with `error`; returns the questions asked."""
    asked: list[str] = []

    def download(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("nothing cached")

    def ask(url: str, **_: object) -> None:
        asked.append(url)
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)
    return asked


def test_published_filters_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parameter = torch.randn(3, 2, 8)
    serve(monkeypatch, {"q_filters": parameter}, tmp_path)
    found = find_on_hub("organisation/tiny")
    assert found is not None
    torch.testing.assert_close(torch.stack(found.filters), -parameter)
    assert found.source["repository"] == "nthngdy/tiny_qfilt"
    assert found.source["revision"] == "abc123"


def test_published_content_that_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    repository = serve(monkeypatch, {"something": torch.ones(2)}, tmp_path)
    with pytest.raises(FilterFileError, match="Delete the folder") as caught:
        find_on_hub("organisation/tiny")
    assert f"{repository} to have them" in str(caught.value)


# The hub client's own: httpx, or httpx2 from its version 2 on.
httpx = importlib.import_module(HTTPError.__module__.partition(".")[0])
REQUEST = httpx.Request("HEAD", "https://huggingface.co/nthngdy/tiny_qfilt")


@pytest.mark.parametrize(
    "error",
    [
        OfflineModeIsEnabled("offline mode is on"),
        RepositoryNotFoundError("404", response=httpx.Response(404, request=REQUEST)),
        httpx.ConnectError("name or service not known"),
        httpx.ReadTimeout("timed out"),
        httpx.ProxyError("proxy said no"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_hub_that_gives_nothing_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    asked = unreachable(monkeypatch, error)
    with caplog.at_level(logging.DEBUG, logger="qfpass"):
        assert find_on_hub("organisation/tiny") is None
    assert asked == ["https://huggingface.co/nthngdy/tiny_qfilt/resolve/main/model.safetensors"]
    assert type(error).__name__ in caplog.text and str(error) in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}


def test_an_error_of_ours_is_not_taken_for_an_absent_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    unreachable(monkeypatch, AttributeError("a mistake"))
    with pytest.raises(AttributeError, match="a mistake"):
        find_on_hub("organisation/tiny")


@pytest.mark.parametrize("name", [None, "", "tiny", "/models/tiny", "./models/tiny", "a/b/c"])
def test_other_names_ask_nothing(monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    asked = unreachable(monkeypatch, ConnectionError("unreachable"))
    assert find_on_hub(name) is None
    assert not asked


def test_a_local_path_asks_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked = unreachable(monkeypatch, ConnectionError("unreachable"))
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert find_on_hub("models/tiny") is None
    assert not asked
