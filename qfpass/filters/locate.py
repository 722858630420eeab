"""Reads filter files by name: from a folder, or from a hub repository."""

from pathlib import Path
from typing import Any

from ..errors import FilterFileError
from . import hub, layout


def read_filters(folder_or_repo: str | Path) -> tuple[layout.Fields, dict[str, Any], Path]:
    """Fields, source and folder of the filters in a folder or a hub repository, in either layout.

    Raises:
        FilterFileError: no filters are there, they can't be read, or the hub can't be reached.
    """
    folder = Path(folder_or_repo).expanduser()
    if (read := layout.read(folder)) is not None:
        return *read, folder
    name = str(folder_or_repo)
    if folder.exists() or not hub.is_repository_name(name):
        raise FilterFileError(
            f"No filters at {name}: it must be a folder with {layout.TENSORS_FILE} or "
            f"{layout.PUBLISHED_FILE} in it, or a hub repository (organisation/name)."
        )
    try:
        path = hub.fetch_first(name, (layout.TENSORS_FILE, layout.PUBLISHED_FILE))
    except hub.UNAVAILABLE as error:
        raise FilterFileError(
            f"There is no folder {name}, and the hub gave neither {layout.TENSORS_FILE} nor "
            f"{layout.PUBLISHED_FILE} of such a repository ({error}). Check the name and the connection, "
            "or give a folder."
        ) from error
    read = layout.read(path.parent)
    assert read is not None, "the file was fetched"
    fields, source = read
    if path.name == layout.PUBLISHED_FILE:
        source = hub.source(name, path)
    return fields, source, path.parent
