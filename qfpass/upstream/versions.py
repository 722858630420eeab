"""The versions of torch and transformers that qfpass was tested with, by `make matrix` (docs/versions.md)."""

import functools
import warnings
from collections.abc import Iterator

import torch
import transformers
from packaging.version import Version

from .entry import UpstreamWarning

TESTED = {"torch": ("2.11.0", "2.13.0", "2.14.1"), "transformers": ("5.0.0", "5.23.0", "5.24.0")}


@functools.cache
def warn_if_untested() -> None:
    """Warn, once per process, if torch or transformers is newer or older than the tested versions."""
    found = {"torch": torch.__version__, "transformers": transformers.__version__}
    if untested := "; ".join(_outside(found)):
        warnings.warn(f"qfpass: {untested}. docs/versions.md says what to do.", UpstreamWarning, stacklevel=3)


def _outside(found: dict[str, str]) -> Iterator[str]:
    """A message for each version that is newer or older than the tested ones."""
    for name, version in found.items():
        release, (lowest, *_, newest) = Version(version).release, TESTED[name]
        if release > Version(newest).release:
            yield f"{name} {version} is newer than {newest}, the newest that was tested"
        elif release < Version(lowest).release:
            yield f"{name} {version} is older than {lowest}, the oldest that works"
