"""Filter classes, the places that filters are loaded from and saved to, and calibration's statistics."""

from .fingerprints import filters_digest, fingerprint
from .load import load_filters
from .local_cache import cache_folder, find_cached, find_on_hub, find_tuned, store_cached
from .push import push_filters
from .q_filters import QFilters
from .query_statistics import QueryStatistics
from .trained_filters import TrainedFilters

__all__ = [
    "QFilters",
    "QueryStatistics",
    "TrainedFilters",
    "cache_folder",
    "filters_digest",
    "find_cached",
    "find_on_hub",
    "find_tuned",
    "fingerprint",
    "load_filters",
    "push_filters",
    "store_cached",
]
