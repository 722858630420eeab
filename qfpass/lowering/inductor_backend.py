"""An Inductor backend for torch.compile that reports, or lets a replay record, each run of its code."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from torch import fx

from .. import code_digest
from ..upstream import inductor
from ..upstream.inductor import Generated
from ..waits import Wait
from .cpu_replay import run_and_record


class GeneratedCall(NamedTuple):
    """One run of the code that Inductor generated for a graph: the code, its inputs and its outputs."""

    generated: Generated
    inputs: tuple[Any, ...]
    outputs: Sequence[Any]


OnRun = Callable[[GeneratedCall], None]


def compile_wait() -> Wait:
    """The wait for Inductor; inside another one it says nothing."""
    return Wait("compiling", "a minute or so in all, seconds once this machine has compiled the model")


class InductorBackend:
    """A torch.compile backend: `backend`, one of `upstream.inductor`, inside `caches_for_bound(bound)`.

    `bound` is the longest length in tokens that the graph's inputs are marked with, None if they aren't.
    """

    def __init__(self, backend: inductor.Backend, bound: int | None) -> None:
        self.options = backend.options
        self._backend, self._bound = backend, bound

    def __call__(self, graph: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        with compile_wait(), caches_for_bound(self._bound):
            return self._backend(graph, examples)


def caches_for_bound(bound: int | None) -> AbstractContextManager[Any]:
    """A context in which compile caches only return code made by these sources and for this bound.

    The cache keys of Inductor and AOTAutograd include neither our lowerings nor the bound of a graph's
    lengths, and Dynamo refuses code of another bound. So this adds both to the keys.
    """
    return inductor.cache_key_tagged(f"qfpass {code_digest.DIGEST} at most {bound}")


def reporting_inductor(
    options: Mapping[str, Any], on_run: OnRun, bound: int | None = None
) -> InductorBackend | None:
    """A backend that calls `on_run` after every run of its code; None if this torch can't have one."""
    backend = inductor.backend_for_pieces(options, lambda generated: _with_reports(generated, on_run))
    return None if backend is None else InductorBackend(backend, bound)


def recordable_inductor(options: Mapping[str, Any], bound: int | None = None) -> InductorBackend | None:
    """A backend whose code a replay can record; None if this torch version can't have one."""
    backend = inductor.backend_for_replays(options, _with_recording)
    return None if backend is None else InductorBackend(backend, bound)


def _with_reports(generated: Generated, on_run: OnRun) -> Generated:
    def run_and_report(inputs: list[Any]) -> Sequence[Any]:
        kept = tuple(inputs)
        outputs = run_and_record(generated, inputs)
        on_run(GeneratedCall(generated, kept, outputs))
        return outputs

    return run_and_report


def _with_recording(generated: Generated) -> Generated:
    return lambda inputs: run_and_record(generated, inputs)
