"""Files that hold filters: the folder that qfpass writes, and the layout of published Q-Filters.

qfpass writes `qfilters.safetensors`, whose header holds a description, and `qfilters.json`, a copy of that
description for people and other programs. The published layout (hub repositories `nthngdy/<model>_qfilt`) is
`model.safetensors` with one parameter, `q_filters [layers, kv_heads, head_dim]`: the negated directions.
"""

import json
import os
import secrets
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import FilterFileError

TENSORS_FILE = "qfilters.safetensors"
DESCRIPTION_FILE = "qfilters.json"
PUBLISHED_FILE = "model.safetensors"
PUBLISHED_PARAMETER = "q_filters"
FORMAT = "qfpass.qfilters/1"

Fields = dict[str, tuple[Tensor, ...]]


def write(folder: Path, fields: Fields, source: dict[str, Any]) -> None:
    """Write `fields` (name -> one tensor per layer) and `source` into `folder`, created if it is missing.

    The tensor file is replaced by one rename, so a crash or a second writer leaves one complete set of
    filters. The description is deleted first: it may be missing, but it never describes other tensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{name}.{layer}": tensor.detach().to("cpu", copy=True).contiguous()
        for name, layers in fields.items()
        for layer, tensor in enumerate(layers)
    }
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    description = json.dumps({"format": FORMAT, "shapes": shapes, "source": source}, indent=2)
    (folder / DESCRIPTION_FILE).unlink(missing_ok=True)
    _replace(folder / TENSORS_FILE, save(tensors, {"qfilters": description}))
    _replace(folder / DESCRIPTION_FILE, description.encode())


def read(folder: Path) -> tuple[Fields, dict[str, Any]] | None:
    """Fields and source of the filters in `folder`, in either layout; None if it has neither file.

    Published filters are negated back, to the sign that qfpass uses.

    Raises:
        FilterFileError: the file can't be read, holds something else, or has values that aren't finite.
    """
    if (folder / TENSORS_FILE).is_file():
        return _read_own(folder / TENSORS_FILE)
    if (folder / PUBLISHED_FILE).is_file():
        return _read_published(folder / PUBLISHED_FILE)
    return None


def _read_own(path: Path) -> tuple[Fields, dict[str, Any]]:
    metadata, tensors = _read_tensors(path)
    try:
        description = json.loads(metadata["qfilters"])
        written_as, source = description["format"], dict(description["source"])
        layers = range(sum(name.startswith("filters.") for name in tensors))
        names = dict.fromkeys(name.partition(".")[0] for name in tensors)
        fields = {name: tuple(tensors[f"{name}.{layer}"] for layer in layers) for name in names}
    except (KeyError, TypeError, ValueError) as error:
        raise FilterFileError(
            f"{path} is not a file of Q-Filters as qfpass saves them ({error!r}): calibrate again, "
            "or get another copy."
        ) from error
    if written_as != FORMAT:
        raise FilterFileError(
            f"{path} has the format {written_as!r} and this version of qfpass reads {FORMAT!r}: "
            "calibrate again, or use the version that wrote it."
        )
    if len(tensors) != len(names) * len(layers):
        raise FilterFileError(
            f"{path} holds {len(layers)} filters and tensors that belong to none of them: "
            "calibrate again, or get another copy."
        )
    return fields, source


def _read_published(path: Path) -> tuple[Fields, dict[str, Any]]:
    _, tensors = _read_tensors(path, only=PUBLISHED_PARAMETER)
    published = tensors[PUBLISHED_PARAMETER]
    if published.ndim != 3 or not published.is_floating_point():
        raise FilterFileError(
            f"{path}: {PUBLISHED_PARAMETER} is {published.dtype} {list(published.shape)}, not a "
            "floating-point [layers, kv_heads, head_dim]: get another copy."
        )
    source = {"layout": "published", "folder": path.parent.name}
    return {"filters": tuple(-published.float())}, source


def _read_tensors(path: Path, only: str | None = None) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The header's metadata and all tensors; with `only`, the file may hold no other tensor."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata, names = file.metadata() or {}, list(file.keys())
            if only is not None and names != [only]:
                raise FilterFileError(
                    f"{path} does not hold published Q-Filters, which are one parameter {only!r}: it has "
                    f"{len(names)} tensors, such as {names[:3]}. Give the folder or repository of the "
                    "filters, not of the model."
                )
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise FilterFileError(
            f"{path} can't be read as a safetensors file ({error}): make or get it again."
        ) from error
    broken = [name for name, tensor in tensors.items() if not tensor.float().isfinite().all()]
    if broken:
        raise FilterFileError(f"{path} has values that are not finite in {broken[:5]}: make or get it again.")
    return metadata, tensors


def _replace(path: Path, content: bytes) -> None:
    """Write `content` to a temporary file and rename it to `path`, so that readers never see a part of it."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
