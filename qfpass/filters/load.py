"""Filters from a folder or the hub, whichever kind they are."""

from pathlib import Path

from qfpass.filters import layout
from qfpass.filters.artifact import QFilters
from qfpass.filters.trained import TrainedFilters


def load_filters(folder_or_repo: str | Path) -> QFilters | TrainedFilters:
    """Read what `QFilters.save` or `TrainedFilters.save` wrote, or published filters; see `QFilters.load`.

    Raises:
        FilterFileError: nothing there, unreadable or other content, or the hub is unreachable.
    """
    folder = Path(folder_or_repo).expanduser()
    read = layout.read(folder)
    if read is not None and "shares" in read[0]:
        return TrainedFilters.from_fields(*read, folder)
    return QFilters.load(folder_or_repo)
