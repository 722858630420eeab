"""A model's graph, recalled or captured, and proven; with what couldn't be left out of the work."""

import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from .config import Config
from .graph.attention import Attention, find_attentions
from .graph.capture import Captured, capture
from .graph.capture_cache import file_of, keep, recall
from .graph.identity import Identity, alike_layers, identity
from .graph.ranks import ALONE, Ranks, are_several
from .upstream.entry import describe
from .verify import verify
from .verify_lengths import verify_lengths

log = logging.getLogger(__name__)
_tracing = threading.Lock()  # a model holds fake tensors meanwhile, and torch's flags are set


@dataclass
class Proven:
    """A graph and its attentions.

    Attributes:
        skipped: optimisations of the capture that weren't used for this model, each with the reason.
        digits: of what the model computes, see `identity`; None if they weren't asked for or can't be told.
        ranks: the processes that run it together.
    """

    captured: Captured
    attentions: list[Attention]
    skipped: dict[str, str] = field(default_factory=dict)
    digits: str | None = None
    ranks: Ranks = ALONE


def capture_and_prove(model: nn.Module, batch: int | None, config: Config, length: int | None) -> Proven:
    """The model's graph and its attentions, proven if the config says so; `length` is its context's.

    A proven graph that Inductor will compile is kept, as Inductor keeps what it makes, and proven again when
    it is used again. Only for the proof layers that do the same are traced once.
    """
    return _Capture(model, batch, config, length).proven()


class _Capture:
    """One model's capture: notes why an optimisation isn't used."""

    def __init__(self, model: nn.Module, batch: int | None, config: Config, length: int | None) -> None:
        self.model, self.batch, self.length, self.config = model, batch, length, config
        self.longest = length if config.overflow == "error" else None
        self.switches, self.lean = config.switches, config.switches.lean_tracing
        self.verify, self.is_kept = config.verify, config.backend == "inductor"
        self.skipped = dict[str, str]()

    def proven(self) -> Proven:
        """By a graph that was kept, else by a capture, which is kept."""
        if are_several():
            return self._proven_together()
        known = self._identity()
        file = self._file(known)
        found = self._recalled(file) if file else None
        if found is None:
            found = self._captured(known)
            if file:
                keep(file, found.captured, self.model, lambda reason: self._skip("capture_cache", reason))
        found.digits = known.digits if known else None
        return found

    def _proven_together(self) -> Proven:
        """By a capture of every layer: what helps one of several processes others may lack."""
        for optimisation in ("capture_cache", "trace_layers_once"):
            self._skip(optimisation, "several processes may run the model together")
        with _tracing:
            captured = capture(self.model, self.batch, lean=self.lean)
        ranks = Ranks.of(captured.module)
        ranks.require_same({**self.config.in_words(), "context_length": self.length})
        return Proven(captured, self._prove(captured, ranks), self.skipped, ranks=ranks)

    def _identity(self) -> Identity | None:
        """What tells models and layers apart, if anything asks for it."""
        reason = None
        if not self.verify:
            reason = "the graph isn't proven, since verify=False"
        elif self.length is None:
            reason = "the model has no context length: give context_length"
        if reason:
            self._skip("capture_cache", reason)
            self._skip("trace_layers_once", reason)
            return None
        once = self.switches.trace_layers_once
        if not (once or (self.switches.capture_cache and self.is_kept)):
            return None
        assert self.length is not None

        def skip(reason: str) -> None:
            self._skip("capture_cache", reason)
            self._skip("trace_layers_once", reason)

        with _tracing:
            return identity(self.model, self.batch, self.length, layers=once, lean=self.lean, on_skip=skip)

    def _file(self, known: Identity | None) -> Path | None:
        if known is None or not self.switches.capture_cache:
            return None
        if not self.is_kept:
            self._skip("capture_cache", "graphs are kept for Inductor alone")
            return None
        file = file_of(known.digits, self.batch)
        if file is None:
            self._skip("capture_cache", "Inductor's own cache is off")
        return file

    def _recalled(self, file: Path) -> Proven | None:
        with _tracing:
            kept = recall(file, self.model, self.batch, self.lean)
        if kept is None:
            return None
        try:
            found = Proven(kept, self._prove(kept), self.skipped)
        except Exception as error:  # a graph of another model fails in any way
            log.warning("captured anew, since the graph in %s doesn't prove: %s", file, error)
            return None
        self._skip("trace_layers_once", "the graph was kept by an earlier process, and nothing was traced")
        return found

    def _captured(self, known: Identity | None) -> Proven:
        """By a capture in which layers that are alike are traced once, if such a graph proves."""

        def skip(reason: str) -> None:
            self._skip("trace_layers_once", reason)

        alike = dict[str, str]()
        with _tracing:
            if known and self.switches.trace_layers_once:
                alike = alike_layers(self.model, known, self.lean, skip)
            captured = capture(self.model, self.batch, alike, self.lean, skip)
        try:
            return Proven(captured, self._prove(captured), self.skipped)
        except Exception as error:  # a graph with a copy in a wrong place fails in any way
            if not alike:
                raise
            skip(f"a graph with layers traced once doesn't prove: {describe(error)}")
        with _tracing:
            captured = capture(self.model, self.batch, lean=self.lean)
        return Proven(captured, self._prove(captured), self.skipped)

    def _prove(self, captured: Captured, ranks: Ranks = ALONE) -> list[Attention]:
        attentions = ranks.together(lambda: find_attentions(captured, self.length))
        if self.verify:
            verify(self.model, captured, attentions, self.longest, ranks)
        verify_lengths(self.model, captured, self.length, ranks)
        return attentions

    def _skip(self, optimisation: str, reason: str) -> None:
        self.skipped.setdefault(optimisation, reason)
        log.info("%s isn't used: %s", optimisation, reason)
