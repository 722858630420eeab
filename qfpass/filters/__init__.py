"""Q-Filters: what they are, where they are kept, and the query statistics that they come from."""

from qfpass.filters.artifact import QFilters
from qfpass.filters.find import (
    cache_folder,
    find_cached,
    find_on_hub,
    fingerprint,
    store_cached,
)
from qfpass.filters.statistics import QueryStatistics

__all__ = [
    "QFilters",
    "QueryStatistics",
    "cache_folder",
    "find_cached",
    "find_on_hub",
    "fingerprint",
    "store_cached",
]
