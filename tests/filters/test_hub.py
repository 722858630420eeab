"""Fetching one file: the cache first, one question, and a deadline on everything."""

import threading
import time
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

from qfpass.filters import hub


@pytest.mark.parametrize("name", ["org/name", "meta-llama/Llama-3.1-8B", "a/b_c.d"])
def test_repository_names(name: str) -> None:
    assert hub.is_repository_name(name)


@pytest.mark.parametrize(
    "name", ["", "name", "/abs/path", "./org/name", "../name", "a/b/c", "~/name", "a\\b", "org/"]
)
def test_other_names(name: str) -> None:
    assert not hub.is_repository_name(name)


class Hub:
    """Stands for the hub: `cached` is in the local cache; `answer` and `deliver` may raise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cached: bool = False) -> None:
        self.calls: list[str] = []
        self.cached = cached
        self.answer = self.deliver = lambda: None
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", self.download)
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", self.ask)

    def download(self, repository: str, filename: str, local_files_only: bool = False) -> str:
        self.calls.append("cache" if local_files_only else "download")
        if local_files_only and not self.cached:
            raise LocalEntryNotFoundError("not in the cache")
        if not local_files_only:
            self.deliver()
        return f"/snapshots/{repository}/{filename}"

    def ask(self, url: str, timeout: float) -> None:
        assert url == "https://huggingface.co/org/name/resolve/main/model.safetensors"
        assert timeout <= hub.ANSWER_SECONDS
        self.calls.append("ask")
        self.answer()


def fail(error: Exception) -> None:
    raise error


def test_cache_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Hub(monkeypatch, cached=True)
    assert hub.fetch("org/name", "model.safetensors") == Path("/snapshots/org/name/model.safetensors")
    assert fake.calls == ["cache"]


def test_found_and_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Hub(monkeypatch)
    assert hub.fetch("org/name", "model.safetensors").name == "model.safetensors"
    assert fake.calls == ["cache", "ask", "download"]


def test_not_found_asks_once(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Hub(monkeypatch)
    fake.answer = lambda: fail(ConnectionError("no route"))
    with pytest.raises(hub.UNAVAILABLE, match="no route"):
        hub.fetch("org/name", "model.safetensors")
    assert fake.calls == ["cache", "ask"]


@pytest.mark.parametrize("stage", ["answer", "deliver"])
def test_silence_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(hub, "DOWNLOAD_SECONDS", 0.2)
    fake = Hub(monkeypatch)
    never = threading.Event()
    setattr(fake, stage, lambda: never.wait(20))
    started = time.monotonic()
    with pytest.raises(hub.UNAVAILABLE, match=r"did not arrive within 0\.2 s"):
        hub.fetch("org/name", "model.safetensors")
    assert time.monotonic() - started < 5
    never.set()


def test_the_clients_own_timeout_keeps_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Hub(monkeypatch)
    fake.answer = lambda: fail(TimeoutError("the read timed out"))
    with pytest.raises(TimeoutError, match="the read timed out"):
        hub.fetch("org/name", "model.safetensors")


def test_lost_download_is_a_connection_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Hub(monkeypatch)
    fake.deliver = lambda: fail(RuntimeError("reconstruction failed"))
    with pytest.raises(ConnectionError, match="reconstruction failed"):
        hub.fetch("org/name", "model.safetensors")


def test_the_real_client_respects_offline_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OfflineModeIsEnabled):
        hub.fetch("org/name", "model.safetensors")


def test_the_real_client_finds_its_cache_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--org--name"
    file = repository / "snapshots" / "0123abcd" / "model.safetensors"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    assert hub.fetch("org/name", "model.safetensors") == file
    assert hub.source("org/name", file)["revision"] == "0123abcd"


def test_a_name_that_the_hub_could_not_hold() -> None:
    with pytest.raises(hub.UNAVAILABLE, match="96"):
        hub.fetch("org/" + "n" * 97, "model.safetensors")
