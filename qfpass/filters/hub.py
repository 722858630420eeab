"""One file of a hub repository, or within seconds the reason why it can't be had."""

import re
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TypeVar

import huggingface_hub  # its client is imported when a name of it is asked for
from huggingface_hub.errors import (
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
)

ANSWER_SECONDS = 4.0
DOWNLOAD_SECONDS = 30.0

UNAVAILABLE: tuple[type[Exception], ...] = (HTTPError, OSError, HFValidationError)
"""What `fetch` raises: HTTPError is any status or transport failure; OSError covers offline mode,
a name that doesn't resolve, a deadline that passed and a hub cache that can't be written;
HFValidationError is a name that the hub could not hold."""

Answer = TypeVar("Answer")


def is_repository_name(name: str) -> bool:
    """Whether `name` is written like `organisation/repository`."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def source(repository: str, path: Path) -> dict[str, str]:
    """Where a fetched file came from; its folder in the hub's cache is named by the revision."""
    return {"layout": "published", "repository": repository, "revision": path.parent.name}


def fetch(repository: str, filename: str) -> Path:
    """Local path of `filename` of the hub repository, from the hub's own cache where it is there.

    Offline mode (`HF_HUB_OFFLINE`) is respected: then only the cache is looked at.

    Raises:
        one of `UNAVAILABLE`: within `ANSWER_SECONDS` if the hub can't be reached or doesn't have
            the file, within `DOWNLOAD_SECONDS` more if it has the file and doesn't deliver it.
    """
    with suppress(LocalEntryNotFoundError):
        return Path(huggingface_hub.hf_hub_download(repository, filename, local_files_only=True))
    return _newest(repository, filename)


def fetch_first(repository: str, filenames: Sequence[str]) -> Path:
    """Local path of the newest version of the first of `filenames` that the repository has.

    Where the hub can't be asked, of the first that is in its cache.

    Raises:
        one of `UNAVAILABLE`: neither is to be had; as `fetch` does for the last of them.
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
    # The download repeats a failed question for 23 s and more; this asks once.
    url = huggingface_hub.hf_hub_url(repository, filename)
    ask, download = huggingface_hub.get_hf_file_metadata, huggingface_hub.hf_hub_download
    _within(ANSWER_SECONDS, url, lambda: ask(url, timeout=ANSWER_SECONDS))
    try:
        return Path(_within(DOWNLOAD_SECONDS, url, lambda: download(repository, filename)))
    except RuntimeError as error:  # how hf_xet, which carries the content, reports a lost connection
        raise ConnectionError(f"{url} could not be downloaded: {error}") from error


def _within(seconds: float, url: str, call: Callable[[], Answer]) -> Answer:
    """Result of `call`, or TimeoutError after `seconds`.

    The client's own timeouts bound neither the name lookup nor the number of addresses tried, and
    a download repeats for minutes, so the call runs on a daemon thread that can be left behind.
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
            raise  # the call's own
        raise TimeoutError(f"{url} did not arrive within {seconds:g} s") from error
