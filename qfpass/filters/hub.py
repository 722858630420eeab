"""Downloads single files from hub repositories, with time limits on failure."""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TypeVar

import huggingface_hub  # lazy: imports its client on first attribute access
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
)

ANSWER_SECONDS = 4.0
DOWNLOAD_SECONDS = 30.0

UNAVAILABLE: tuple[type[Exception], ...] = (HTTPError, OSError, HFValidationError)
"""The exceptions that `fetch` raises.

HTTPError: any HTTP status or transport failure. OSError: offline mode, a host name that doesn't resolve, a
time limit that passed, or a hub cache that can't be written. HFValidationError: an invalid repository name.
"""

Answer = TypeVar("Answer")


def is_repository_name(name: str) -> bool:
    """Whether `name` has the form `organisation/repository`."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def source(repository: str, path: Path) -> dict[str, str]:
    """The `source` of filters that were fetched; a file's folder in the hub's cache is named by revision."""
    return {"layout": "published", "repository": repository, "revision": path.parent.name}


def fetch(repository: str, filename: str) -> Path:
    """Local path of `filename` of the hub repository, downloaded unless the hub's cache has it.

    In offline mode (`HF_HUB_OFFLINE`) only the cache is used.

    Raises:
        one of `UNAVAILABLE`: within `ANSWER_SECONDS` if the hub can't be reached or doesn't have the file,
            within `DOWNLOAD_SECONDS` more if the download doesn't finish.
    """
    with suppress(LocalEntryNotFoundError):
        return Path(huggingface_hub.hf_hub_download(repository, filename, local_files_only=True))
    return _newest(repository, filename)


def fetch_first(repository: str, filenames: Sequence[str]) -> Path:
    """Local path of the newest version of the first of `filenames` that the repository has.

    If the hub gives none of them, for example offline, the first one that is in the hub's cache.

    Raises:
        one of `UNAVAILABLE`: neither the hub nor its cache has one of them; time limits as in `fetch`.
    """
    try:
        for filename in filenames[:-1]:
            with suppress(RemoteEntryNotFoundError):
                return _newest(repository, filename)
        return _newest(repository, filenames[-1])
    except UNAVAILABLE:
        for filename in filenames:
            with suppress(LocalEntryNotFoundError):
                return Path(huggingface_hub.hf_hub_download(repository, filename, local_files_only=True))
        raise


def _newest(repository: str, filename: str) -> Path:
    # hf_hub_download retries a failed request for 23 s and more; the metadata request is sent once.
    url = huggingface_hub.hf_hub_url(repository, filename)
    ask, download = huggingface_hub.get_hf_file_metadata, huggingface_hub.hf_hub_download
    _within(ANSWER_SECONDS, url, lambda: ask(url, timeout=ANSWER_SECONDS))
    try:
        return Path(_within(DOWNLOAD_SECONDS, url, lambda: download(repository, filename)))
    except RuntimeError as error:  # hf_xet, which transfers the content, reports a lost connection so
        raise ConnectionError(f"{url} could not be downloaded: {error}") from error


def _within(seconds: float, url: str, call: Callable[[], Answer]) -> Answer:
    """The result of `call`; raises TimeoutError if it takes longer than `seconds`.

    The client's own timeouts limit neither the name lookup nor the number of addresses tried, and a download
    retries for minutes. So the call runs on a daemon thread, which is abandoned when the time is up.
    """
    future: Future[Answer] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except Exception as error:
            future.set_exception(error)

    Thread(target=run, name="qfpass-hub", daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError as error:
        if future.done():
            raise  # `call` raised it
        raise TimeoutError(f"{url} did not arrive within {seconds:g} s") from error
