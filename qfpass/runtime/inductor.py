"""torch.compile's Inductor backend, which tells of every call of what it generated."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from .recording import Generated, run


class Run(NamedTuple):
    """A call of generated code."""

    generated: Generated
    inputs: tuple[Any, ...]
    outputs: Sequence[Any]


class Inductor:
    """A backend for torch.compile with options of Inductor; `tell` is given every run.

    `bound` tells graphs apart whose lengths have another bound: Inductor's cache doesn't, and would give one
    what it compiled for the other, which Dynamo then refuses.

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

        # AOTAutograd's cache would give back what was compiled once, without a look at `_compile`; Inductor's
        # own, which saves most of the time, doesn't.
        tag = f"{torch.compiler.config.cache_key_tag} at most {self._bound}"
        with (
            torch._functorch.config.patch(enable_autograd_cache=False),
            torch.compiler.config.patch(cache_key_tag=tag),  # type: ignore[attr-defined]
        ):
            compiled: Any = compile_fx(
                graph, examples, inner_compile=self._compile, config_patches=self.options
            )
            return compiled

    def _compile(self, graph: fx.GraphModule, examples: Sequence[Any], **rest: Any) -> Any:
        from torch._inductor.compile_fx import compile_fx_inner

        compiled = compile_fx_inner(graph, examples, **rest)
        generated = getattr(compiled, "current_callable", None)
        if generated is not None:
            compiled.current_callable = self._told(generated)  # type: ignore[attr-defined]
        return compiled

    def _told(self, generated: Generated) -> Generated:
        def told(inputs: list[Any]) -> Sequence[Any]:
            kept = tuple(inputs) if self._tell else ()
            outputs = run(generated, inputs)
            if self._tell:
                self._tell(Run(generated, kept, outputs))
            return outputs

        return told
