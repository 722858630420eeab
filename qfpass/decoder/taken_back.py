"""How many tokens a session can take back: those that every layer keeps, whatever their scores."""

from collections.abc import Sequence

from ..errors import ConfigError, SessionError
from ..sizes import Sizes
from ..store.layer import Layer


def most_taken_back(sizes: Sizes, layers: Sequence[Layer]) -> tuple[int, str]:
    """The most tokens that a session of these sizes can take back, and what bounds them, in words."""
    bounds = [(sizes.context_length, "the context length")]
    if any(layer.rule.is_bounded for layer in layers):
        bounds.append((sizes.recent, "the newest tokens that are never evicted (recent=)"))
    bounds += [(layer.rule.slots, f"the window of {layer.name}") for layer in layers if layer.is_ring]
    return min(bounds)


def require_kept(take_back: int, sizes: Sizes, layers: Sequence[Layer]) -> None:
    """Refuse a number of tokens that can't be taken back.

    Raises:
        ConfigError: it isn't a whole number from 0.
        SessionError: it is greater than `most_taken_back`.
    """
    if isinstance(take_back, bool) or not isinstance(take_back, int) or take_back < 0:
        raise ConfigError(f"take_back must be a whole number from 0, not {take_back!r}.")
    most, bound = most_taken_back(sizes, layers)
    if take_back > most:
        raise SessionError(
            f"take_back={take_back} is more than {most}, {bound}: only tokens that all layers still hold can "
            "be taken back. Lower take_back, or compile with a larger recent if that is what bounds it."
        )
