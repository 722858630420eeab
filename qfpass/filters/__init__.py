"""Filters: what they are, where they are kept, and the query statistics that Q-Filters come from."""

from qfpass.filters.artifact import QFilters
from qfpass.filters.find import (
    cache_folder,
    find_cached,
    find_on_hub,
    store_cached,
)
from qfpass.filters.fingerprints import fingerprint
from qfpass.filters.load import load_filters
from qfpass.filters.push import push_filters
from qfpass.filters.statistics import QueryStatistics
from qfpass.filters.trained import TrainedFilters

__all__ = [
    "QFilters",
    "QueryStatistics",
    "TrainedFilters",
    "cache_folder",
    "find_cached",
    "find_on_hub",
    "fingerprint",
    "load_filters",
    "push_filters",
    "store_cached",
]
