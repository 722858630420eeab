"""Notice changes of the original model after compile, and compile it again where they matter.

New values in the same weights need nothing, since compiled code reads the weights in place. Everything else
that modules hold (flags, scales, submodules, hooks, other tensors) is compared at each call, as dictionaries.
Where it differs, the hash of what the model computes (`digest`) shows whether it computes something else.
"""

import logging
import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from ..capture.module_snapshot import Snapshot
from ..capture.quantised_linears import HeldCodes, plain_linears
from ..decoder.decoder import Decoder
from ..errors import SessionError
from ..graph.tracing import TRACING
from ..lowering.weight_guard import weights_of
from ..sessions.session import Session

log = logging.getLogger(__name__)


class _Kept(NamedTuple):
    """A decoder, the hash of the computation it was compiled from, and the model's tensors that it reads."""

    digest: str | None
    decoder: Decoder
    weights: list[torch.Tensor]


class DecoderVersions:
    """The decoders of a model in its present and earlier states, each compiled once.

    Args:
        digest: the hash of the computation that `decoder` was compiled from; None if unknown.
        identify: returns the hash of what the model computes now; None if it can't be found.
        compile_anew: compiles the model as it is now.
    """

    def __init__(
        self,
        model: nn.Module,
        decoder: Decoder,
        digest: str | None,
        identify: Callable[[], str | None],
        compile_anew: Callable[[], Decoder],
    ) -> None:
        self._model, self._identify, self._compile_anew = model, identify, compile_anew
        self._snapshot, self._codes = Snapshot(model), HeldCodes(model)
        self._current = self._keep(digest, decoder)
        self._kept = [self._current]
        self._lock = threading.RLock()

    def current(self) -> Decoder:
        """The decoder of the model as it is now.

        Raises:
            QFPassError: the model can't be compiled as it is now; the next call tries again.
        """
        if not self._snapshot.is_current() or self._codes.differences():
            with self._lock, TRACING:  # while another thread traces, other modules may stand in
                differences = [*self._snapshot.differences(), *self._codes.differences()]
                snapshot, codes = Snapshot(self._model), HeldCodes(self._model)
                if differences:
                    self._current = self._decoder_after_change(differences)
                self._snapshot, self._codes = snapshot, codes
        return self._current.decoder

    def refuse_earlier(self, session: Session) -> None:
        """Refuse a session of an earlier state of the model.

        Raises:
            SessionError: `session` belongs to one of the decoders kept here.
        """
        if any(session.belongs_to(kept.decoder) for kept in self._kept):
            raise SessionError(
                "the session's keys were made before the model was changed (another adapter, other settings "
                "or weights). Make a new session, or change the model back."
            )

    def _decoder_after_change(self, differences: list[str]) -> _Kept:
        """The kept decoder of the same computation, or one that is compiled now.

        Decoders that read tensors which are no longer the model's are dropped.
        """
        own, digest = self._tensor_ids(), self._identify()
        self._kept = [kept for kept in self._kept if all(id(weight) in own for weight in kept.weights)]
        for kept in self._kept:
            if digest is not None and kept.digest == digest:
                return kept
        shown = ", ".join(differences[:3]) + (", ..." if len(differences) > 3 else "")
        log.warning("the model has changed since it was compiled (%s): compiling it as it is now", shown)
        made = self._keep(digest, self._compile_anew())
        self._kept.append(made)
        return made

    def _keep(self, digest: str | None, decoder: Decoder) -> _Kept:
        own = self._tensor_ids()
        return _Kept(digest, decoder, [weight for weight in decoder.weights if id(weight) in own])

    def _tensor_ids(self) -> set[int]:
        with plain_linears(self._model):
            return {id(tensor) for tensor in weights_of(self._model)}
