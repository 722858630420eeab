"""Changes a boolean setting of torch inside a context."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any


def no_change() -> AbstractContextManager[Any]:
    """A context that changes nothing: the fallback of entries that return a context."""
    return nullcontext()


def temporarily_set(holder: Any, name: str, value: bool) -> AbstractContextManager[None]:
    """A context in which `holder.name` is `value`.

    If it is `value` already, perhaps set by another thread, the context neither sets nor resets it.

    Raises:
        AttributeError: there is no such setting; raised by this call, not on entering the context.
    """
    return no_change() if getattr(holder, name) == value else _changed(holder, name, value)


@contextmanager
def _changed(holder: Any, name: str, value: bool) -> Iterator[None]:
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, not value)
