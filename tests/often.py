"""Which cases of a test run in `make test`, and which only in `make test-slow`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def often(chosen: Collection[Any], cases: Iterable[Any]) -> list[Any]:
    """All cases, of which those that aren't chosen are marked slow: they take long and seldom fail alone."""
    return [case if case in chosen else pytest.param(case, marks=pytest.mark.slow) for case in cases]
