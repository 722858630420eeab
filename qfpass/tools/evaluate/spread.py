"""The mean and standard error of samples."""

import math
import statistics
from collections.abc import Sequence


def mean_and_error(samples: Sequence[float]) -> tuple[float, float | None]:
    """The mean of `samples` and its standard error, s / sqrt(n); the error of one sample is None."""
    if len(samples) < 2:
        return statistics.fmean(samples), None
    return statistics.fmean(samples), statistics.stdev(samples) / math.sqrt(len(samples))
