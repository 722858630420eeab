"""Session files: safetensors of the stores' tensors, with a header that names the model they belong to."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import SessionError
from ..store.layer import Layer
from ..store.store_kind import fields_of, with_tensors
from .rows import Row
from .stores import Store

FORMAT = "qfpass session 5"


def named(stores: Iterable[Store], layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
    """The tensors of these layers' stores by their names in a file; of no stores, nothing."""
    return {
        f"{layer.index}.{field}": tensor
        for layer, store in zip(layers, stores, strict=False)
        for field, tensor in zip(fields_of(type(store)), store, strict=True)
    }


def write(
    path: str | Path,
    stores: Mapping[str, torch.Tensor],
    rows: Sequence[Row],
    columns: int,
    read: Sequence[torch.Tensor],
    belongs_to: Mapping[str, str],
) -> None:
    """Write a session to `path`: rows, number of columns and the ids [n] that each row has read.

    `stores` are the tensors of its stores by name, see `named`. `belongs_to` names what a decoder must have
    in common with it to read the file.

    Raises:
        SessionError: the file can't be written.
    """
    tensors = dict(stores)
    tensors |= {f"read.{row}": ids for row, ids in enumerate(read)}
    header = {
        "format": FORMAT,
        "rows": json.dumps(rows),
        "columns": str(columns),
        "belongs_to": json.dumps(dict(belongs_to)),
    }
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=header)
    except (OSError, SafetensorError) as error:
        raise SessionError(f"the session can't be written to {path}: {error}") from error


def read(
    path: str | Path,
    layers: Sequence[Layer],
    belongs_to: Mapping[str, str],
) -> tuple[tuple[Store, ...], tuple[Row, ...], int, tuple[torch.Tensor, ...]]:
    """The stores of these layers (on the CPU), rows, columns and read ids of a saved session.

    Raises:
        SessionError: the file can't be read, holds no session, or its header differs from `belongs_to`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise SessionError(f"{path} holds no session that this version of qfpass wrote.")
            _require_same(path, json.loads(header["belongs_to"]), belongs_to)
            rows = tuple(Row(*row) for row in json.loads(header["rows"]))
            stores = tuple(_store_in(file, layer) for layer in (layers if rows else ()))
            read = tuple(file.get_tensor(f"read.{row}") for row in range(len(rows)))
            return stores, rows, int(header["columns"]), read
    except (OSError, SafetensorError) as error:
        raise SessionError(f"{path} can't be read as a session: {error}") from error


def _store_in(file: Any, layer: Layer) -> Store:
    kind: type[Store] = layer.rule.store_type
    return with_tensors(kind, [file.get_tensor(f"{layer.index}.{name}") for name in fields_of(kind)])


def _require_same(path: str | Path, theirs: Mapping[str, str], mine: Mapping[str, str]) -> None:
    for name in {**mine, **theirs}:
        if theirs.get(name) != mine.get(name):
            raise SessionError(
                f"the session in {path} differs from this model in its {name}:\n"
                f"  session: {theirs.get(name)}\n  model:   {mine.get(name)}"
            )
