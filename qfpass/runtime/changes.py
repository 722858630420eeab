"""What happens to the original after compile: what its forward does now is noticed and followed.

New numbers in the same weights need nothing, since compiled code reads them where they lie. Everything else
that modules hold (flags, scales, parts, hooks, other tensors) is compared at each call, in one comparison of
dictionaries; where it differs, the model's digits tell whether it computes something else.
"""

import logging
import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from ..errors import SessionError
from .decoder import Decoder
from .session import Session
from .snapshot import Snapshot
from .weights import weights_of

log = logging.getLogger(__name__)


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
