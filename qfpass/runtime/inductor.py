"""torch.compile's Inductor backend, which tells of every call of what it generated."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx
from torch._inductor.cudagraph_utils import CUDAGraphPolicy

from .. import sources
from .recording import Generated, run


class Run(NamedTuple):
    """A call of generated code."""

    generated: Generated
    inputs: tuple[Any, ...]
    outputs: Sequence[Any]


class Inductor:
    """A backend for torch.compile with options of Inductor; `tell` is given every run.

    The caches of Inductor and AOTAutograd look at neither our lowerings nor `bound`, which is that of a
    graph's lengths; Dynamo refuses code of another bound. So both are part of what they are asked for.

    Raises:
        RuntimeError: an option that Inductor doesn't have.
    """

    def __init__(
        self,
        options: Mapping[str, Any],
        tell: Callable[[Run], None] | None = None,
        bound: int | None = None,
    ) -> None:
        self.options = dict(torch._TorchCompileInductorWrapper(None, options, None).config)
        self._tell, self._bound = tell, bound

    def __call__(self, graph: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        from torch._inductor.compile_fx import compile_fx

        tag = f"{torch.compiler.config.cache_key_tag} qfpass {sources.DIGEST} at most {self._bound}"
        with torch.compiler.config.patch(cache_key_tag=tag):  # type: ignore[attr-defined]
            compiled: Any = compile_fx(
                graph, examples, config_patches={**self.options, "cudagraph_policy": _Telling(self._tell)}
            )
            return compiled


class _Telling(CUDAGraphPolicy):
    """Makes generated code tell of its runs. Inductor asks a policy to wrap what it compiled and also what
    AOTAutograd's cache gives back."""

    def __init__(self, tell: Callable[[Run], None] | None) -> None:
        self._tell = tell

    def wrap_output(self, output_code: Any) -> Any:
        generated = getattr(output_code, "current_callable", None)
        if generated is not None:
            output_code.current_callable = self._telling(generated)
        return output_code

    def _telling(self, generated: Generated) -> Generated:
        def telling(inputs: list[Any]) -> Sequence[Any]:
            kept = tuple(inputs) if self._tell else ()
            outputs = run(generated, inputs)
            if self._tell:
                self._tell(Run(generated, kept, outputs))
            return outputs

        return telling
