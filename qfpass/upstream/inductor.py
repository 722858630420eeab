"""Inductor, the code generator of torch.compile: backends with a hook on its code, options and caches."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import Any

import torch
from torch import fx

from .entry import Needed, only_fast

Generated = Callable[[list[Any]], Sequence[Any]]
"""The function that Inductor generates for a graph: it takes a list of inputs, which it empties."""

Wrap = Callable[[Generated], Generated]
"""wrap(generated) -> the function to call instead of the generated one."""

Lower = Callable[..., Any]
"""The lowering of an operator: from operands in Inductor's graph to the output there."""


class Backend:
    """A backend for torch.compile: Inductor with `options`, which calls `wrap` on the code it generates.

    Attributes:
        options: all of Inductor's options, defaults of torch.compile included.
    """

    def __init__(self, options: Mapping[str, Any], wrap: Wrap) -> None:
        from torch._inductor import config

        self.options = dict(torch._TorchCompileInductorWrapper(None, dict(options), None).config)
        hook = _by_policy if hasattr(config, "cudagraph_policy") else _by_inner_compile
        self._compile = hook(self.options, wrap)

    def __call__(self, graph: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        return self._compile(graph, examples)


def _no_backend(options: Mapping[str, Any], wrap: Wrap) -> Backend | None:
    return None


@only_fast("piecewise", plain=_no_backend)
def backend_for_pieces(options: Mapping[str, Any], wrap: Wrap) -> Backend | None:
    """A backend whose generated code can be called past Dynamo; Inductor must know the options.

    Without it: torch.compile's own Inductor compiles the whole graph.
    """
    return Backend(options, wrap)


@only_fast("replay", plain=_no_backend)
def backend_for_replays(options: Mapping[str, Any], wrap: Wrap) -> Backend | None:
    """A backend whose generated code can be recorded; Inductor must know the options.

    Without it: torch.compile's own Inductor is used, and steps aren't replayed.
    """
    return Backend(options, wrap)


def _by_policy(options: Mapping[str, Any], wrap: Wrap) -> Callable[..., Any]:
    """compile_fx with a CUDA graph policy, which may wrap all code, newly compiled or from a cache."""
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.cudagraph_utils import CUDAGraphPolicy

    class Policy(CUDAGraphPolicy):
        def wrap_output(self, output_code: Any) -> Any:
            return _wrapped(output_code, wrap)

    inspect.signature(CUDAGraphPolicy.wrap_output).bind(None, None)
    asked: Any = {"config_patches": {**options, "cudagraph_policy": Policy()}}
    inspect.signature(compile_fx).bind(None, (), **asked)
    return partial(compile_fx, **asked)


def _by_inner_compile(options: Mapping[str, Any], wrap: Wrap) -> Callable[..., Any]:
    """compile_fx for torch 2.11, with `wrap` in its inner compiler.

    AOTAutograd's cache is turned off, since a cached result would bypass the inner compiler.
    """
    from torch._functorch import config
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner

    def compile_inner(*args: Any, **kwargs: Any) -> Any:
        return _wrapped(compile_fx_inner(*args, **kwargs), wrap)

    asked: Any = {"config_patches": dict(options), "inner_compile": compile_inner}
    inspect.signature(compile_fx).bind(None, (), **asked)

    def compile(graph: fx.GraphModule, examples: Sequence[Any]) -> Any:
        with config.patch(enable_autograd_cache=False):
            return compile_fx(graph, examples, **asked)

    return compile


def _wrapped(output_code: Any, wrap: Wrap) -> Any:
    generated = getattr(output_code, "current_callable", None)
    if generated is not None:
        output_code.current_callable = wrap(generated)
    return output_code


@Needed
def options_of_mode(mode: str) -> dict[str, Any]:
    """The Inductor options that a `mode` of torch.compile stands for.

    Without it: only the default mode can be asked for.
    """
    options: dict[str, Any] = torch._inductor.list_mode_options(mode)
    return dict(options)


def known_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `options` that this version of Inductor has."""
    return {name: value for name, value in options.items() if _is_known(name, value)}


def refuse_unknown(options: Mapping[str, Any]) -> None:
    """Raise if torch.compile refuses a user's options of Inductor.

    Raises:
        RuntimeError: torch.compile's own, for an unknown option or a value of the wrong type.
    """
    torch.compile(_nothing, backend="inductor", options=dict(options))


@cache
def _is_known(name: str, value: Any) -> bool:
    try:
        refuse_unknown({name: value})
    except RuntimeError:
        return False
    return True


def _nothing() -> None:
    pass


def cache_key_tagged(tag: str) -> AbstractContextManager[Any]:
    """A context in which the keys of Inductor's and AOTAutograd's caches also contain `tag`."""
    tag = f"{torch.compiler.config.cache_key_tag} {tag}".strip()
    patched: AbstractContextManager[Any] = torch.compiler.config.patch(cache_key_tag=tag)  # type: ignore[attr-defined]
    return patched


def _no_loops(lowerings: Callable[[], Mapping[Any, Lower]]) -> bool:
    return False


@only_fast("own_loops", plain=_no_loops)
def lower_to_own_loops(lowerings: Callable[[], Mapping[Any, Lower]]) -> bool:
    """Register `lowerings()` (operator -> lowering) with Inductor, over any registered before; returns True.

    An operator whose lowering fails is called unlowered.

    Without it: Inductor's own kernels run.
    """
    from .inductor_template import register

    for operator, lower in lowerings().items():
        register(operator, lower)
    return True


def gave_up_loops(error: Exception) -> bool:
    """Whether `error` says that the C++ of our loops doesn't compile; if so, they are no longer used.

    They are written with at::vec, which may change between versions.
    """
    if lower_to_own_loops.failure is not None or "CppCompileError" not in f"{type(error)} {error}":
        return False
    lower_to_own_loops.give_up("its C++ doesn't compile")
    return True
