"""Get a model's graph, from the cache or by a capture, and prove it."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from ..attention.find import Attention, find_attentions
from ..capture.cache import cache_file, load_captured, save_captured
from ..capture.computation_digest import ComputationDigest, digest_computation, repeated_layers
from ..capture.export import capture
from ..capture.ranks import ALONE, Ranks, are_several
from ..config import Config
from ..filters.whole_fingerprint import as_part_of_whole
from ..graph.captured import Captured
from ..graph.tracing import TRACING
from ..upstream.entry import describe
from .longer_texts import verify_lengths
from .verify import verify

log = logging.getLogger(__name__)


@dataclass
class Proven:
    """A proven graph and its attentions.

    Attributes:
        skipped: the optimisations that the capture didn't use for this model, each with the reason.
        digest: of what the model computes; None if it wasn't needed or can't be made.
        ranks: the processes that run the model together.
    """

    captured: Captured
    attentions: list[Attention]
    skipped: dict[str, str] = field(default_factory=dict)
    digest: str | None = None
    ranks: Ranks = ALONE


def capture_and_prove(model: nn.Module, batch: int | None, config: Config, length: int | None) -> Proven:
    """The model's graph and its attentions, proven if the config asks for it.

    `length` is the context length in tokens, None if there is none. A proven graph that Inductor will compile
    is kept in the capture cache, beside Inductor's own, and is proven again when it is used again. Equal
    layers are traced once only if there is a proof.
    """
    return _Capture(model, batch, config, length).proven()


class _Capture:
    """Captures one model, and notes in `skipped` why an optimisation isn't used."""

    def __init__(self, model: nn.Module, batch: int | None, config: Config, length: int | None) -> None:
        self.model, self.batch, self.length, self.config = model, batch, length, config
        self.longest = length if config.overflow == "error" else None
        self.switches = config.switches
        self.verify, self.is_kept = config.verify, config.backend == "inductor"
        self.skipped = dict[str, str]()

    def proven(self) -> Proven:
        """The proven graph from the cache, else from a capture, which is then cached."""
        if are_several():
            return self._proven_together()
        known = self._digest()
        file = self._file(known)
        found = self._recalled(file) if file else None
        if found is None:
            found = self._captured(known)
            if file:
                save_captured(
                    file, found.captured, self.model, lambda reason: self._skip("capture_cache", reason)
                )
        found.digest = known.digest if known else None
        return found

    def _proven_together(self) -> Proven:
        """The proven graph from a capture of every layer, for a model that several processes run together.

        They use no cache and no equal layers, since one process may have what another lacks.
        """
        for optimisation in ("capture_cache", "trace_layers_once"):
            self._skip(optimisation, "several processes may run the model together")
        settings = {**self.config.in_words(), "context_length": self.length}
        ranks = Ranks.of_model(self.model)
        if ranks is ALONE:  # by other hands: the graph's collectives tell who runs the model
            captured = self._traced()
            ranks = Ranks.of(captured.module)
            ranks.require_same(settings)
        else:
            ranks.require_same(settings)
            captured = ranks.together(self._traced)
        with ranks.in_step("the proof"):
            attentions = ranks.together(lambda: find_attentions(captured, self.length))
            captured, attentions = as_part_of_whole(captured, attentions, ranks)
            self._verify(captured, attentions, ranks)
        return Proven(captured, attentions, self.skipped, ranks=ranks)

    def _traced(self) -> Captured:
        """A capture of every layer."""
        with TRACING:
            return capture(self.model, self.batch)

    def _digest(self) -> ComputationDigest | None:
        """The digest that tells models and layers apart; None if nothing needs it or there is none."""
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

        with TRACING:
            return digest_computation(self.model, self.batch, self.length, layers=once, on_skip=skip)

    def _file(self, known: ComputationDigest | None) -> Path | None:
        """The file that keeps this model's graph; None if no graph is kept."""
        if known is None or not self.switches.capture_cache:
            return None
        if not self.is_kept:
            self._skip("capture_cache", "graphs are kept for Inductor alone")
            return None
        file = cache_file(known.digest, self.batch)
        if file is None:
            self._skip("capture_cache", "Inductor's own cache is off")
        return file

    def _recalled(self, file: Path) -> Proven | None:
        """The kept graph, proven; None if there is none or it doesn't prove."""
        with TRACING:
            kept = load_captured(file, self.model, self.batch)
        if kept is None:
            return None
        try:
            found = Proven(kept, self._prove(kept), self.skipped)
        except Exception as error:  # a graph of another model fails in any way
            log.warning("the model is traced again, since the graph in %s can't be proven: %s", file, error)
            return None
        self._skip("trace_layers_once", "the graph was kept by an earlier process, and nothing was traced")
        return found

    def _captured(self, known: ComputationDigest | None) -> Proven:
        """The proven graph from a capture, in which equal layers are traced once if such a graph proves."""

        def skip(reason: str) -> None:
            self._skip("trace_layers_once", reason)

        repeats = dict[str, str]()
        with TRACING:
            if known and self.switches.trace_layers_once:
                repeats = repeated_layers(self.model, known, skip)
            captured = capture(self.model, self.batch, repeats, skip)
        try:
            return Proven(captured, self._prove(captured), self.skipped)
        except Exception as error:  # a graph with a copy in a wrong place fails in any way
            if not repeats:
                raise
            skip(f"a graph with layers traced once can't be proven: {describe(error)}")
        captured = self._traced()
        return Proven(captured, self._prove(captured), self.skipped)

    def _prove(self, captured: Captured) -> list[Attention]:
        attentions = find_attentions(captured, self.length)
        self._verify(captured, attentions)
        return attentions

    def _verify(self, captured: Captured, attentions: list[Attention], ranks: Ranks = ALONE) -> None:
        if self.verify:
            verify(self.model, captured, attentions, self.longest, ranks, self.config.kernel)
        verify_lengths(self.model, captured, self.length, ranks)

    def _skip(self, optimisation: str, reason: str) -> None:
        self.skipped.setdefault(optimisation, reason)
        log.info("%s isn't used: %s", optimisation, reason)
