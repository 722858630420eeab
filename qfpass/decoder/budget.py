"""A session's own budget: fewer slots than the model was compiled with."""

from collections.abc import Sequence
from dataclasses import replace

from ..config import Config
from ..errors import SessionError
from ..sizes import Sizes
from ..store.layer import Layer, bounded_shares


def sizes_for(budget: int, compiled: Sizes, config: Config, layers: Sequence[Layer]) -> Sizes:
    """The sizes of a session that uses `budget` slots per head in bounded layers.

    Raises:
        ConfigError: the budget is too small for the protected tokens, or no valid number.
        SessionError: the budget is greater than the compiled one, or no layer is bounded.
    """
    if not any(layer.rule.is_bounded for layer in layers):
        raise SessionError(
            "every layer of this model keeps every key, so a session's budget bounds nothing: compile with a "
            "greater ratio or a smaller budget."
        )
    chunk = config.chunk
    if chunk is not None and isinstance(budget, int) and chunk >= budget:
        chunk = None  # then `resolve` takes the longest that the budget allows
    asked = replace(config, ratio=None, budget=budget, context_length=compiled.context_length, chunk=chunk)
    sizes = asked.resolve(None, len(layers), min(bounded_shares(layers)), default_chunk=compiled.chunk)
    if budget > compiled.slots:
        raise SessionError(
            f"a session can't have {budget} slots, since the model was compiled with {compiled.slots}: "
            "compile with a larger budget."
        )
    return sizes
