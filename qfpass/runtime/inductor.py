"""torch.compile's Inductor backend, which tells of every call of what it generated."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from torch import fx

from .. import sources
from ..upstream import inductor
from ..upstream.inductor import Generated
from .recording import run


class Run(NamedTuple):
    """A call of generated code."""

    generated: Generated
    inputs: tuple[Any, ...]
    outputs: Sequence[Any]


Tell = Callable[[Run], None]


class Inductor:
    """A backend for torch.compile whose code is recorded while a thread records; `tell` is given every run.

    `bound` is that of the graph's lengths; see `caches_of`. Its maker is one of `upstream.inductor`.
    """

    def __init__(self, backend: inductor.Backend, bound: int | None) -> None:
        self.options = backend.options
        self._backend, self._bound = backend, bound

    def __call__(self, graph: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        with caches_of(self._bound):
            return self._backend(graph, examples)


def caches_of(bound: int | None) -> AbstractContextManager[Any]:
    """Inside, what is compiled is found in the caches if it was compiled so.

    The caches of Inductor and AOTAutograd look at neither our lowerings nor the bound of a graph's lengths,
    and Dynamo refuses code of another bound. So both are part of what they are asked for.
    """
    return inductor.caches_apart(f"qfpass {sources.DIGEST} at most {bound}")


def telling_inductor(options: Mapping[str, Any], tell: Tell, bound: int | None = None) -> Inductor | None:
    """A backend that gives `tell` every run of its code; None where this version has none."""
    backend = inductor.backend_for_pieces(options, lambda generated: _telling(generated, tell))
    return None if backend is None else Inductor(backend, bound)


def recorded_inductor(options: Mapping[str, Any], bound: int | None = None) -> Inductor | None:
    """A backend whose code can be recorded; None where this version has none."""
    backend = inductor.backend_for_replays(options, _recordable)
    return None if backend is None else Inductor(backend, bound)


def _telling(generated: Generated, tell: Tell) -> Generated:
    def telling(inputs: list[Any]) -> Sequence[Any]:
        kept = tuple(inputs)
        outputs = run(generated, inputs)
        tell(Run(generated, kept, outputs))
        return outputs

    return telling


def _recordable(generated: Generated) -> Generated:
    return lambda inputs: run(generated, inputs)
