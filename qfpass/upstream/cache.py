"""The name of the cache in the arguments and outputs of transformers, which version 5.24 changed."""

import functools
import inspect
from typing import Any

from ..errors import InputError
from .entry import Needed

CACHE_NAMES = ("past_key_values", "cache")


@Needed
@functools.cache
def cache_name() -> str:
    """The name of the cache argument: "cache" from transformers 5.24 on, "past_key_values" before.

    Without it: transformers' generate and a compiled model can't hand each other a session.
    """
    from transformers import GenerationMixin

    parameters = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    for name in CACHE_NAMES:
        if name in parameters:
            return name
    raise AttributeError(
        f"GenerationMixin.prepare_inputs_for_generation takes none of {', '.join(CACHE_NAMES)}"
    )


def cache_kwargs(cache: Any) -> dict[str, Any]:
    """The keyword arguments that pass `cache` to a model of transformers."""
    return {cache_name(): cache}


def cache_argument(past_key_values: Any, cache: Any) -> Any:
    """The cache that a call passed under either name, or None.

    Raises:
        InputError: both names were used for different objects.
    """
    if past_key_values is not None and cache is not None and past_key_values is not cache:
        raise InputError("cache and past_key_values are two names of one argument: give one of them.")
    return cache if cache is not None else past_key_values


@Needed
def causal_output(logits: Any, cache: Any) -> Any:
    """A CausalLMOutputWithPast in which the cache, a session, can be read under both names.

    Without it: a compiled model can't return what its original does.
    """
    from .outputs import SessionOutput

    return SessionOutput(logits=logits, **cache_kwargs(cache))


@Needed
def hidden_output(hidden: Any, cache: Any) -> Any:
    """A BaseModelOutputWithPast in which the session can be read under both names.

    Without it: a compiled model without a head can't return what its original does.
    """
    from .outputs import HiddenOutput

    return HiddenOutput(last_hidden_state=hidden, **cache_kwargs(cache))


@Needed
def scores_output(scores: Any, cache: Any) -> Any:
    """A SequenceClassifierOutputWithPast in which the session can be read under both names.

    Without it: a compiled sequence classifier can't return what its original does.
    """
    from .outputs import ScoresOutput

    return ScoresOutput(logits=scores, **cache_kwargs(cache))


def give_both_names(output: Any) -> None:
    """Set `output.cache` on an output of generate whose cache only has the older name."""
    if cache_name() == "past_key_values" and hasattr(output, "past_key_values"):
        output.cache = output.past_key_values


@Needed
def columns_to_remove(argument: int, columns: int) -> int:
    """How many of `columns` columns `Cache.crop(argument)` removes, as the transformers here means it.

    A negative number is minus that many. In older versions others are the most to keep; in newer ones
    0 removes none, and positive numbers are refused.

    Without it: `session.crop` can't tell what generate asks for.

    Raises:
        InputError: the number is positive, and this transformers gives it no meaning.
    """
    from transformers import Cache

    if argument < 0:
        return -argument
    (name,) = list(inspect.signature(Cache.crop).parameters)[1:]
    if name == "max_length":
        return max(0, columns - argument)
    if argument > 0:
        raise InputError(f"crop({argument}) has no meaning: crop(-{argument}) takes {argument} tokens back.")
    return 0
