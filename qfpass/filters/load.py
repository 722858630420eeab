"""Loads filters of either kind from a folder or the hub."""

from pathlib import Path

from .locate import read_filters
from .q_filters import QFilters
from .trained_filters import TrainedFilters


def load_filters(folder_or_repo: str | Path) -> QFilters | TrainedFilters:
    """The filters in a folder or hub repository, of whichever kind it holds.

    The kinds are those that `QFilters.save`, `TrainedFilters.save` and `push_filters` write, and published
    Q-Filters.

    Raises:
        FilterFileError: no filters are there, they can't be read, or the hub can't be reached.
    """
    fields, source, folder = read_filters(folder_or_repo)
    kind = TrainedFilters if "shares" in fields else QFilters
    return kind.from_fields(fields, source, folder)
