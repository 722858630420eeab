"""The two kinds of entries, as decorators: `Needed`, and `only_fast` with a fallback."""

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

from .. import switches
from ..errors import UpstreamError

P = ParamSpec("P")
R = TypeVar("R")
_MISSING = (ImportError, AttributeError)  # what a removed name raises


def versions() -> str:
    """The versions of torch and transformers, if they are imported, such as `torch 2.14.1`."""
    found = (
        (name, getattr(sys.modules.get(name), "__version__", None)) for name in ("torch", "transformers")
    )
    return ", ".join(f"{name} {version}" for name, version in found if version)


class Needed(Generic[P, R]):
    """A function that the pass can't work without; used as a decorator.

    A call raises UpstreamError if the function meets a name that is missing.
    """

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
    """A function that makes something faster, and a plain fallback that runs if it raises.

    Attributes:
        optimisation: the name of its switch in `qfpass.Switches`.
        plain: the fallback, with the same signature.
        failure: the reason of the last failure; None if it never failed.
    """

    def __init__(self, optimisation: str, function: Callable[P, R], plain: Callable[P, R]) -> None:
        functools.update_wrapper(self, function)
        self.optimisation, self.function, self.plain = optimisation, function, plain
        self.failure: str | None = None
        ENTRIES.append(self)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return self.function(*args, **kwargs)
        except Exception as error:  # a private part that has changed may raise anything
            self.give_up(error)
        return self.plain(*args, **kwargs)

    def give_up(self, error: Exception | str) -> None:
        """Keep `error` as the entry's failure; warns at the first one."""
        known, self.failure = self.failure, describe(error)
        if known is None:
            warnings.warn(
                f"qfpass: {self.optimisation} is not available with {versions()}: {name_of(self)} failed "
                f"({self.failure}). {switches.without(self.optimisation).capitalize()}.",
                UpstreamWarning,
                stacklevel=3,
            )


def only_fast(optimisation: str, plain: Callable[P, R]) -> Callable[[Callable[P, R]], OnlyFast[P, R]]:
    """A decorator for a function that makes something faster; `plain` is called if it raises."""
    return lambda function: OnlyFast(optimisation, function, plain)


class UpstreamWarning(UserWarning):
    """An optimisation doesn't work with this version of torch or transformers, or the version is untested."""


ENTRIES: list[Needed[Any, Any] | OnlyFast[Any, Any]] = []


def failures_of(optimisation: str) -> list[str]:
    """Name and failure of each entry of an optimisation that has failed."""
    return [
        f"{name_of(entry)}: {entry.failure}"
        for entry in ENTRIES
        if isinstance(entry, OnlyFast) and entry.optimisation == optimisation and entry.failure
    ]


def name_of(entry: Needed[Any, Any] | OnlyFast[Any, Any]) -> str:
    """An entry's module and function, such as fx.merge_equal_nodes."""
    return f"{entry.function.__module__.rpartition('.')[2]}.{entry.function.__name__}"


def describe(error: Exception | str) -> str:
    """An error's type and the first line of its message; a string as it is."""
    if isinstance(error, str):
        return error
    first = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
