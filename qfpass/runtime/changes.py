"""What happens to the original after compile: what its forward does now is noticed and followed.

New numbers in the same weights need nothing, since compiled code reads them where they lie. Everything else
that modules hold (flags, scales, parts, hooks, other tensors) is compared at each call, in one comparison of
dictionaries; where it differs, the model's digits tell whether it computes something else.
"""

import copy
import logging
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import SessionError
from ..upstream.modules import own_values
from .decoder import Decoder
from .session import Session
from .weights import weights_of

log = logging.getLogger(__name__)
_IGNORED = {"training"}  # a compiled decoder is one in eval mode, whatever its original does now
_OF_THE_OBJECT = {"forward", "generation_config"}  # and hooks: what the original alone is called with


class Snapshot:
    """What every module of a model holds, and its config."""

    def __init__(self, model: nn.Module) -> None:
        held = {path: own_values(module) for path, module in model.named_modules()}
        if hasattr(getattr(model, "config", None), "__dict__"):
            held["config"] = vars(model.config)
        self._paths, self._now = list(held), list(held.values())
        self._then = [_copied(values) for values in self._now]

    def is_current(self) -> bool:
        """Some 0.2 microseconds a module: values that are the same objects aren't looked at."""
        try:
            return self._now == self._then
        except Exception:  # what comparing other tensors, or objects of any kind, raises
            return False

    def differences(self) -> list[str]:
        """What was set, by path, but for what no forward in eval mode reads."""
        found = list[str]()
        for path, now, then in zip(self._paths, self._now, self._then, strict=True):
            for name in now.keys() | then.keys():
                if _is_followed(path, name) and not _same(now.get(name), then.get(name)):
                    found += (f"{path}.{inner}".lstrip(".") for inner in _names(name, now, then))
        return sorted(found)


class _Kept(NamedTuple):
    """A decoder, the digits of the model that it is of, and those of the model's tensors that it reads."""

    digits: str | None
    decoder: Decoder
    weights: list[torch.Tensor]


class Changes:
    """The decoders of a model as it is and as it was, each compiled once.

    `identify` gives the digits of what the model computes now, None if they can't be told; `compile_anew`
    compiles it as it is now. `digits` are those of `decoder`.
    """

    def __init__(
        self,
        model: nn.Module,
        decoder: Decoder,
        digits: str | None,
        identify: Callable[[], str | None],
        compile_anew: Callable[[], Decoder],
    ) -> None:
        self._model, self._identify, self._compile_anew = model, identify, compile_anew
        self._snapshot = Snapshot(model)
        self._current = self._keep(digits, decoder)
        self._kept = [self._current]
        self._lock = threading.RLock()

    def current(self) -> Decoder:
        """The decoder of the model as it is now.

        Raises:
            QFPassError: the model can't be compiled as it is now; the next call tries again.
        """
        if not self._snapshot.is_current():
            with self._lock:
                differences, snapshot = self._snapshot.differences(), Snapshot(self._model)
                if differences:
                    self._current = self._of_now(differences)
                self._snapshot = snapshot
        return self._current.decoder

    def refuse_earlier(self, session: Session) -> None:
        """Refuse a session of the model as it was.

        Raises:
            SessionError: it is one.
        """
        if any(session.belongs_to(kept.decoder) for kept in self._kept):
            raise SessionError(
                "the session was read by the model as it was before a change (another adapter, other "
                "settings or weights): its keys are of that model. Make a new session, or change it back."
            )

    def _of_now(self, differences: list[str]) -> _Kept:
        """What was compiled of such a model, or is now."""
        own, digits = self._own_tensors(), self._identify()
        self._kept = [kept for kept in self._kept if all(id(weight) in own for weight in kept.weights)]
        for kept in self._kept:
            if digits is not None and kept.digits == digits:
                return kept
        shown = ", ".join(differences[:3]) + (", ..." if len(differences) > 3 else "")
        log.warning("the model has changed since it was compiled (%s): compiling it as it is now", shown)
        made = self._keep(digits, self._compile_anew())
        self._kept.append(made)
        return made

    def _keep(self, digits: str | None, decoder: Decoder) -> _Kept:
        own = self._own_tensors()
        return _Kept(digits, decoder, [weight for weight in decoder.weights_read if id(weight) in own])

    def _own_tensors(self) -> set[int]:
        return {id(tensor) for tensor in weights_of(self._model)}


def _is_followed(path: str, name: str) -> bool:
    is_of_the_object = not path and (name in _OF_THE_OBJECT or "hooks" in name or name.endswith("call_impl"))
    return name not in _IGNORED and not is_of_the_object


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    """The same values, and copies of what can be changed in place."""
    return {
        name: copy.copy(value) if isinstance(value, (dict, list, set)) else value
        for name, value in values.items()
    }


def _same(now: Any, then: Any) -> bool:
    try:
        return now is then or bool(now == then)
    except Exception:  # as above
        return False


def _names(name: str, now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Of parameters and parts their own names, not that of the dictionary that holds them."""
    before, after = then.get(name), now.get(name)
    if not (name.startswith("_") and isinstance(before, dict) and isinstance(after, dict)):
        return [name]
    inner = (key for key in before.keys() | after.keys() if before.get(key) is not after.get(key))
    return [str(key) if isinstance(key, str) else name for key in inner] or [name]
