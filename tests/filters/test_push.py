"""Filters pushed to a local folder that stands for the hub, and loaded from it by name."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

from qfpass.errors import FilterFileError
from qfpass.filters import QFilters, TrainedFilters, load_filters, push, push_filters
from qfpass.filters.trained_filters import EXTRA_WEIGHTS


class LocalHub:
    """Repositories as folders below one folder; nothing is cached."""

    def __init__(self, root: Path, token: str | None = None) -> None:
        self.root = root

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        return f"the hub's {repo_id}"

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)

    def file_exists(self, repo_id: str, filename: str) -> bool:
        return (self.root / repo_id / filename).exists()

    def download(self, repository: str, filename: str, local_files_only: bool = False) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("nothing is cached")
        return str(self.root / repository / filename)

    def ask(self, url: str, timeout: float) -> None:
        organisation, name, _, _, filename = url.split("/")[-5:]
        if not (self.root / organisation / name / filename).exists():
            response: Any = SimpleNamespace(headers={}, request=None, status_code=404)
            raise RemoteEntryNotFoundError("404", response=response)


@pytest.fixture
def local_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LocalHub:
    """The hub, which a test can reach in no other way."""
    local = LocalHub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token=None: local)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", local.download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", local.ask)
    return local


SOURCE = {"fingerprint": "ab12", "data": "essays"}


def q_filters() -> QFilters:
    return QFilters(tuple(torch.eye(2, 4) * i for i in (1.0, 2.0)), source=SOURCE)


def trained_filters() -> TrainedFilters:
    return TrainedFilters(
        tuple(torch.ones(2, 16 + EXTRA_WEIGHTS) * i for i in (1.0, 2.0)), (0.5, 1.5), SOURCE
    )


@pytest.mark.parametrize("filters", [q_filters(), trained_filters()], ids=["Q-Filters", "trained"])
def test_pushed_filters_are_loaded_by_name(filters: QFilters | TrainedFilters, local_hub: LocalHub) -> None:
    assert push_filters(filters, "someone/tiny", base_model="someone/model") == "the hub's someone/tiny"
    loaded = load_filters("someone/tiny")
    assert type(loaded) is type(filters)
    assert (loaded.shares, loaded.source) == (filters.shares, SOURCE)
    torch.testing.assert_close(loaded.filters, filters.filters, rtol=0, atol=0)


def test_the_card_says_what_they_are(local_hub: LocalHub) -> None:
    push_filters(trained_filters(), "someone/tiny", base_model="someone/model")
    card = ModelCard.load(local_hub.root / "someone" / "tiny" / push.CARD_FILE)
    assert (card.data.base_model, card.data.library_name) == ("someone/model", "qfpass")
    for part in ('filters="someone/tiny"', "layers: 2", "[2, 18]", "ab12", '"data": "essays"', "trained so"):
        assert part in card.text


def test_an_edited_card_stays(local_hub: LocalHub) -> None:
    push_filters(q_filters(), "someone/tiny")
    card = local_hub.root / "someone" / "tiny" / push.CARD_FILE
    card.write_text("mine")
    push_filters(trained_filters(), "someone/tiny")
    assert card.read_text() == "mine"
    assert isinstance(load_filters("someone/tiny"), TrainedFilters)


def test_what_is_cached_serves_where_the_hub_is_not_to_be_had(
    local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_filters(q_filters(), "someone/tiny")

    def cached(repository: str, filename: str, local_files_only: bool = False) -> str:
        path = local_hub.root / repository / filename
        if not local_files_only or not path.exists():
            raise LocalEntryNotFoundError("connection lost")
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", cached)
    assert load_filters("someone/tiny").source == SOURCE


def test_refused(local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FilterFileError, match="organisation/name"):
        push_filters(q_filters(), "nobody")

    def refuse(*_: Any, **__: Any) -> None:
        raise ConnectionError("not logged in")

    def lose(*_: Any, **__: Any) -> None:
        raise RuntimeError("lost")

    for step, error, message in (
        ("upload_folder", lose, "lost"),
        ("create_repo", refuse, "not logged in"),
    ):
        monkeypatch.setattr(local_hub, step, error)
        with pytest.raises(FilterFileError, match=rf"(?s)didn't take .* someone/tiny .*{message}"):
            push_filters(q_filters(), "someone/tiny")
