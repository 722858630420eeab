"""The two kinds of entries: needed, and only fast."""

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

from .. import switches
from ..errors import UpstreamError

P = ParamSpec("P")
R = TypeVar("R")
_MISSING = (ImportError, AttributeError)  # what a name that has gone raises


def versions() -> str:
    """Of torch and transformers as they run here."""
    found = (
        (name, getattr(sys.modules.get(name), "__version__", None)) for name in ("torch", "transformers")
    )
    return ", ".join(f"{name} {version}" for name, version in found if version)


class Needed(Generic[P, R]):
    """A function that the pass can't do without; use it as a decorator."""

    def __init__(self, function: Callable[P, R]) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        ENTRIES.append(self)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return self.function(*args, **kwargs)
        except _MISSING as error:
            raise UpstreamError(
                f"qfpass can't work with {versions()}: {name_of(self)} needs what isn't there "
                f"({type(error).__name__}: {error}). docs/versions.md lists the versions that work."
            ) from error


class OnlyFast(Generic[P, R]):
    """A function that makes something faster, and the plain way that runs where it fails.

    Attributes:
        optimisation: the switch that it belongs to.
        failure: why it failed last, None if it never did.
    """

    def __init__(self, optimisation: str, function: Callable[P, R], plain: Callable[P, R]) -> None:
        functools.update_wrapper(self, function)
        self.optimisation, self.function, self.plain = optimisation, function, plain
        self.failure: str | None = None
        ENTRIES.append(self)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return self.function(*args, **kwargs)
        except Exception as error:  # whatever a private part raises that has changed
            self.give_up(error)
        return self.plain(*args, **kwargs)

    def give_up(self, error: Exception | str) -> None:
        """Note that it doesn't work here, and say so once."""
        known, self.failure = self.failure, describe(error)
        if known is None:
            warnings.warn(
                f"qfpass: {self.optimisation} is not available with {versions()}: {name_of(self)} failed "
                f"({self.failure}). {switches.without(self.optimisation).capitalize()}.",
                UpstreamWarning,
                stacklevel=3,
            )


def only_fast(optimisation: str, plain: Callable[P, R]) -> Callable[[Callable[P, R]], OnlyFast[P, R]]:
    """Decorator of a function that makes something faster; `plain` is called where it fails."""
    return lambda function: OnlyFast(optimisation, function, plain)


class UpstreamWarning(UserWarning):
    """This version of torch or transformers makes something slower, or is untested."""


ENTRIES: list[Needed[Any, Any] | OnlyFast[Any, Any]] = []


def failures_of(optimisation: str) -> list[str]:
    """Why the entries of an optimisation failed, of those that did."""
    return [
        f"{name_of(entry)}: {entry.failure}"
        for entry in ENTRIES
        if isinstance(entry, OnlyFast) and entry.optimisation == optimisation and entry.failure
    ]


def name_of(entry: Needed[Any, Any] | OnlyFast[Any, Any]) -> str:
    """Of its module and its function: fx.lazy_graph_module."""
    return f"{entry.function.__module__.rpartition('.')[2]}.{entry.function.__name__}"


def describe(error: Exception | str) -> str:
    """The first line of what went wrong."""
    if isinstance(error, str):
        return error
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
