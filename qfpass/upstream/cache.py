"""The name that a cache has in transformers' calls and outputs, which version 5.24 changed."""

import functools
import inspect
from typing import Any

from ..errors import InputError
from .entry import Needed

NAMES = ("past_key_values", "cache")


@Needed
@functools.cache
def cache_name() -> str:
    """`cache` from transformers 5.24 on, `past_key_values` before.

    Without it: transformers' generate and a compiled model can't hand each other a session.
    """
    from transformers import GenerationMixin

    parameters = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    for name in NAMES:
        if name in parameters:
            return name
    raise AttributeError(f"GenerationMixin.prepare_inputs_for_generation takes none of {', '.join(NAMES)}")


def as_cache(cache: Any) -> dict[str, Any]:
    """The keyword argument by which a model of transformers takes a cache."""
    return {cache_name(): cache}


def one_of(past_key_values: Any, cache: Any) -> Any:
    """The cache that a call gave by either name, None if by neither.

    Raises:
        InputError: by both, and they aren't the same.
    """
    if past_key_values is not None and cache is not None and past_key_values is not cache:
        raise InputError("cache and past_key_values are two names of one argument: give one of them.")
    return cache if cache is not None else past_key_values


@Needed
def causal_output(logits: Any, cache: Any) -> Any:
    """transformers' output of a causal language model, in which a session has both names.

    Without it: a compiled model can't return what its original does.
    """
    from .outputs import SessionOutput

    return SessionOutput(logits=logits, **as_cache(cache))


def give_both_names(output: Any) -> None:
    """Let an output of generate have its cache as `cache` too, where transformers has the older name."""
    if cache_name() == "past_key_values" and hasattr(output, "past_key_values"):
        output.cache = output.past_key_values
