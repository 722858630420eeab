"""Filters from a folder or the hub, whichever kind they are."""

from pathlib import Path

from qfpass.filters.artifact import QFilters
from qfpass.filters.locate import read_filters
from qfpass.filters.trained import TrainedFilters


def load_filters(folder_or_repo: str | Path) -> QFilters | TrainedFilters:
    """Read what `QFilters.save`, `TrainedFilters.save` or `push_filters` wrote, or published filters.

    Raises:
        FilterFileError: nothing there, unreadable or other content, or the hub is unreachable.
    """
    fields, source, folder = read_filters(folder_or_repo)
    kind = TrainedFilters if "shares" in fields else QFilters
    return kind.from_fields(fields, source, folder)
