"""Finds filters that exist already for a model: in the user's cache folder, or published on the hub."""

import logging
import os
import re
from dataclasses import replace
from pathlib import Path

from platformdirs import user_cache_path

from ..errors import FilterFileError
from . import hub, layout
from .locate import read_filters
from .q_filters import QFilters
from .trained_filters import TrainedFilters

log = logging.getLogger(__name__)
VARIABLE = "QFPASS_CACHE"


def cache_folder() -> Path:
    """The folder that qfpass keeps files in between runs: `$QFPASS_CACHE`, else the user's cache folder."""
    chosen = os.environ.get(VARIABLE)
    return Path(chosen).expanduser() if chosen else user_cache_path("qfpass", appauthor=False)


def find_cached(fingerprint: str) -> QFilters | None:
    """The cached filters of the model with this fingerprint, or None.

    Raises:
        FilterFileError: the cached files can't be read or belong to another model.
    """
    folder = _entry(fingerprint)
    if not (folder / layout.TENSORS_FILE).is_file():  # never saved, or the first save was interrupted
        return None
    filters = _load_entry(folder, folder)
    if filters.source.get("fingerprint") != fingerprint:
        raise FilterFileError(
            f"The filters cached in {folder} belong to the model "
            f"{filters.source.get('fingerprint')!r}. Delete that folder to calibrate again."
        )
    return filters


def find_tuned(fingerprint: str) -> TrainedFilters | None:
    """The filters that `qfpass.tune` made for the model with this fingerprint, or None.

    Raises:
        FilterFileError: the cached files can't be read.
    """
    folder = _entry(fingerprint, "tuned")
    if not (folder / layout.TENSORS_FILE).is_file():
        return None
    fields, source, _ = read_filters(folder)
    return TrainedFilters.from_fields(fields, source, folder)


def store_cached(filters: QFilters | TrainedFilters) -> Path:
    """Write the filters into the cache under their `source["fingerprint"]`; returns the folder.

    Raises:
        FilterFileError: the source has no fingerprint, or the cache can't be written.
    """
    kind = "tuned" if isinstance(filters, TrainedFilters) else "filters"
    folder = _entry(filters.source.get("fingerprint"), kind)
    try:
        filters.save(folder)
    except OSError as error:
        raise FilterFileError(
            f"The cache can't be written ({error}): set QFPASS_CACHE to one that can be written."
        ) from error
    return folder


def find_on_hub(name_or_path: str | None) -> QFilters | None:
    """The filters published as `nthngdy/<name>_qfilt` for a hub model `organisation/name`.

    None for a local path, for a name of another form, and if the hub can't be reached, is switched off
    (`HF_HUB_OFFLINE`) or has no such repository. The reason is logged at debug level. A hub that doesn't
    answer costs a few seconds at most.

    Raises:
        FilterFileError: the repository's file is broken or holds something else.
    """
    if name_or_path is None or not hub.is_repository_name(name_or_path):
        log.debug("no published filters looked for: %r is no hub name", name_or_path)
        return None
    if Path(name_or_path).exists():
        log.debug("no published filters looked for: %s is a local path", name_or_path)
        return None
    repository = f"nthngdy/{name_or_path.partition('/')[2]}_qfilt"
    try:
        path = hub.fetch(repository, layout.PUBLISHED_FILE)
    except hub.UNAVAILABLE as error:
        log.debug("no published filters from %s: %s: %s", repository, type(error).__name__, error)
        return None
    # The hub's cache has the file at models--<organisation>--<name>/snapshots/<revision>/<file>. It is a
    # link, so a broken copy is replaced only if the repository's whole folder is deleted.
    filters = _load_entry(path.parent, path.parents[2])
    return replace(filters, source=hub.source(repository, path))


def _entry(fingerprint: object, kind: str = "filters") -> Path:
    if not isinstance(fingerprint, str) or not re.fullmatch(r"[0-9a-f]{8,64}", fingerprint):
        raise FilterFileError(
            f"Filters are cached under the model's fingerprint, which is hexadecimal digits, not "
            f"{fingerprint!r}: set source['fingerprint'] to what fingerprint() returns."
        )
    return cache_folder() / kind / fingerprint


def _load_entry(folder: Path, disposable: Path) -> QFilters:
    """The filters in `folder`; the error for a broken copy says to delete `disposable`."""
    try:
        return QFilters.load(folder)
    except FilterFileError as error:
        raise FilterFileError(
            f"A cached copy of Q-Filters is broken: {error} "
            f"Delete the folder {disposable} to have them made or fetched again."
        ) from error
