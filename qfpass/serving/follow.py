"""A model that several processes run together is called by the first of them; the others make the same calls.

The first process has the scheduler. Before it calls a method of its model, or of a pool or session of it, it
tells the others, which call it on their own. Attributes it reads without them, since they are alike.
"""

import inspect
import itertools
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch.distributed as dist

from ..errors import QFPassError, RanksError
from ..model.pool import Pool
from ..sessions.session import Session

_CALLED_LATER = (Pool, Session)


class _Number(NamedTuple):
    """Stands for a pool or session in the arguments of a call that is told."""

    value: int


class _Told(NamedTuple):
    """A call of an object, by number; the numbers of its result and of objects that nobody has any more."""

    target: int
    method: str
    args: tuple[Any, ...]
    keywords: Mapping[str, Any]
    result: int
    dropped: tuple[int, ...]


class Leader:
    """The first process's side.

    Args:
        model: from `qfpass.compile`, which all processes have called.
        group: of all processes, for this alone; its timeout must be longer than any pause between calls.
        on_failure: is called once, with the reason, when the processes can't go on together.

    Attributes:
        model: for `Scheduler`: it has the model's attributes, and calls its methods in all processes.
    """

    def __init__(
        self, model: Any, group: Any, on_failure: Callable[[BaseException], None] = lambda error: None
    ) -> None:
        self._group, self._on_failure = group, on_failure
        self._turn, self._numbers = threading.RLock(), itertools.count()
        self._dropped = list[int]()
        self._failure: BaseException | None = None
        self.model: Any = self._led(next(self._numbers), model)

    def _led(self, number: int, own: Any) -> "_Led":
        led = _Led(self, number, own)
        weakref.finalize(led, self._dropped.append, number).atexit = False
        return led

    def close(self) -> None:
        """Let the others' `follow` return; nothing may be called any more."""
        with self._turn:
            dist.broadcast_object_list([None], 0, self._group)

    def call(self, led: "_Led", method: str, args: tuple[Any, ...], keywords: Mapping[str, Any]) -> Any:
        """What the method returns here, after all processes have called it.

        Raises:
            QFPassError: as the method does, in all processes alike.
            RanksError: one of them has failed or gone.
        """
        with self._turn:
            if self._failure is not None:
                raise RanksError(f"the processes of this model no longer run together: {self._failure!r}.")
            number, dropped = next(self._numbers), tuple(self._dropped)
            del self._dropped[: len(dropped)]
            told = _Told(led.qfpass_number, method, *_each(_numbered, args, keywords), number, dropped)
            own, own_keywords = _each(_own, args, keywords)
            try:
                dist.broadcast_object_list([told], 0, self._group)
                result = getattr(led.qfpass_own, method)(*own, **own_keywords)
            except BaseException as error:
                if isinstance(error, QFPassError) and not isinstance(error, RanksError):
                    raise  # it is raised before anything is computed, everywhere
                self._failure = error
                self._on_failure(error)
                raise RanksError(f"another process of this model has failed or gone: {error}") from error
            return self._led(number, result) if isinstance(result, _CALLED_LATER) else result


class _Led:
    """An object of the first process whose methods all processes call; attributes are its own."""

    def __init__(self, leader: Leader, number: int, own: Any) -> None:
        self.qfpass_leader, self.qfpass_number, self.qfpass_own = leader, number, own

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.qfpass_own, name)
        if not inspect.ismethod(value):
            return value
        return lambda *args, **keywords: self.qfpass_leader.call(self, name, args, keywords)


def _each(
    change: Callable[[Any], Any], args: Sequence[Any], keywords: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call, each changed."""
    return tuple(map(change, args)), {name: change(value) for name, value in keywords.items()}


def _numbered(value: Any) -> Any:
    return _Number(value.qfpass_number) if isinstance(value, _Led) else value


def _own(value: Any) -> Any:
    return value.qfpass_own if isinstance(value, _Led) else value


def follow(model: Any, group: Any) -> None:
    """Make the calls that the first process's `Leader` tells of, until it closes.

    Raises:
        RanksError: the first process has gone, or a call failed here for a reason that it doesn't share. The
            process should end then, so that the others learn of it.
    """
    held: dict[int, Any] = {0: model}
    while (told := _heard(group)) is not None:
        for number in told.dropped:
            held.pop(number, None)
        args, keywords = _each(
            lambda a: held[a.value] if isinstance(a, _Number) else a, told.args, told.keywords
        )
        try:
            result = getattr(held[told.target], told.method)(*args, **keywords)
        except RanksError:
            raise
        except QFPassError:
            continue  # the first process gets it as well
        except Exception as error:
            raise RanksError(f"{told.method} failed in this process: {error}") from error
        if isinstance(result, _CALLED_LATER):
            held[told.result] = result


def _heard(group: Any) -> _Told | None:
    heard: list[Any] = [None]
    try:
        dist.broadcast_object_list(heard, 0, group)
    except RuntimeError as error:
        raise RanksError(f"the first process of this model has gone: {error}") from error
    told: _Told | None = heard[0]
    return told
