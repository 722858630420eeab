"""A setting of torch's that has another value for a while."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any


def as_it_is() -> AbstractContextManager[Any]:
    """The plain way of an entry that changes something for a while."""
    return nullcontext()


def set_meanwhile(holder: Any, name: str, value: bool) -> AbstractContextManager[None]:
    """`holder.name` is `value` inside; if it was so already, by another thread too, that is left alone.

    Raises:
        AttributeError: now, not inside, if there is no such setting.
    """
    return as_it_is() if getattr(holder, name) == value else _changed(holder, name, value)


@contextmanager
def _changed(holder: Any, name: str, value: bool) -> Iterator[None]:
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, not value)
