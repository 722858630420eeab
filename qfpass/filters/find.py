"""Where filters for a model may already be: this machine's cache, or published on the hub."""

import hashlib
import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from platformdirs import user_cache_path
from torch import Tensor

from qfpass.errors import FilterFileError
from qfpass.filters import hub, layout
from qfpass.filters.artifact import LayerShape, QFilters
from qfpass.upstream.modules import parts_of

SAMPLES = 64
FINGERPRINT_DIGITS = 16
log = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Folder of what qfpass keeps between runs: `$QFPASS_CACHE`, or the user's cache folder."""
    chosen = os.environ.get("QFPASS_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("qfpass", appauthor=False)


def fingerprint(tensors: Iterable[Tensor], layers: Sequence[LayerShape]) -> str:
    """16 hexadecimal digits that identify a model's architecture and weights.

    Covers the layers' heads and dimensions, and each tensor's shape and 64 evenly spaced
    values. Those are rounded to bfloat16, so float32 and bfloat16 copies of the same weights
    agree; device, memory layout, names, order and number of equal tensors make no difference: a
    capture may have the constants of a model's code once or once a layer. Reads a few kilobytes of
    weights, whatever their size. Fine-tuned weights differ, as they should.
    """
    lines = [f"layer {x.query_heads} {x.kv_heads} {x.head_dim}" for x in layers]
    plain = (each for tensor in tensors for each in _plain(tensor))
    lines += sorted({f"{list(t.shape)} {_sample(t)}" for t in plain})
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:FINGERPRINT_DIGITS]


def find_cached(fingerprint: str) -> QFilters | None:
    """The filters stored for this model, or None.

    Raises:
        FilterFileError: what is stored can't be read or belongs to another model.
    """
    folder = _entry(fingerprint)
    if not (folder / layout.TENSORS_FILE).is_file():  # also a first save that was cut short
        return None
    filters = _load_entry(folder, folder)
    if filters.source.get("fingerprint") != fingerprint:
        raise FilterFileError(
            f"The filters cached in {folder} belong to the model "
            f"{filters.source.get('fingerprint')!r}. Delete that folder to calibrate again."
        )
    return filters


def store_cached(filters: QFilters) -> Path:
    """Store filters under their `source["fingerprint"]` and return the folder.

    Raises:
        FilterFileError: the source names no fingerprint, or the cache can't be written.
    """
    folder = _entry(filters.source.get("fingerprint"))
    try:
        filters.save(folder)
    except OSError as error:
        raise FilterFileError(
            f"The cache can't be written ({error}): set QFPASS_CACHE to a folder that can be."
        ) from error
    return folder


def find_on_hub(name_or_path: str | None) -> QFilters | None:
    """The filters published as `nthngdy/<name>_qfilt` for a hub model `organisation/name`.

    None for a local path or another form of name, and when the hub can't be reached, is switched
    off (`HF_HUB_OFFLINE`) or has no such repository; the reason is logged at debug level. That
    takes a few seconds at most.

    Raises:
        FilterFileError: the repository's file was fetched, and is broken or something else.
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
    # The hub's cache keeps models--<organisation>--<name>/snapshots/<revision>/<file>; the file
    # is a link, so only deleting the repository's folder brings a fresh copy.
    filters = _load_entry(path.parent, path.parents[2])
    return replace(filters, source=hub.source(repository, path))


def _entry(fingerprint: object) -> Path:
    if not isinstance(fingerprint, str) or not re.fullmatch(r"[0-9a-f]{8,64}", fingerprint):
        raise FilterFileError(
            f"Filters are cached by the model's fingerprint, hexadecimal digits, not by "
            f"{fingerprint!r}: set source['fingerprint'] to what fingerprint() returns."
        )
    return cache_folder() / "filters" / fingerprint


def _load_entry(folder: Path, disposable: Path) -> QFilters:
    try:
        return QFilters.load(folder)
    except FilterFileError as error:
        raise FilterFileError(
            f"A cached copy of Q-Filters is broken: {error} "
            f"Delete the folder {disposable} to have them made or fetched again."
        ) from error


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors that hold a parameter's numbers: several where it is quantised, else itself."""
    parts = parts_of(tensor)
    if not parts:
        yield tensor
    for part in parts:
        yield from _plain(part)


def _sample(tensor: Tensor) -> list[int]:
    """Evenly spaced values, first and last included, as the bits of their bfloat16 rounding."""
    size = tensor.numel()
    steps = min(SAMPLES, size)
    # Whole-number arithmetic: a float32 linspace would miss by some elements in large tensors.
    places = torch.arange(steps) * (size - 1) // max(steps - 1, 1)
    flat = tensor.detach().reshape(1) if tensor.ndim == 0 else tensor.detach()
    # Indexing by coordinates reads these elements alone, even of a tensor that is not contiguous.
    index = torch.unravel_index(places.to(flat.device), flat.shape)
    return flat[index].to("cpu", torch.bfloat16).view(torch.int16).tolist()
