"""The output of a compiled transformers model. It imports transformers' models, so only calls import it."""

from dataclasses import dataclass
from typing import Any

from transformers.modeling_outputs import CausalLMOutputWithPast

from .cache import CACHE_NAMES, cache_name


@dataclass
class SessionOutput(CausalLMOutputWithPast):
    """Logits and the session, which has both names in any version: `past_key_values` and `cache`."""

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(cache_name() if key in CACHE_NAMES else key)

    def __contains__(self, key: object) -> bool:
        return super().__contains__(cache_name() if key in CACHE_NAMES else key)

    def get(self, key: Any, default: Any = None) -> Any:
        """The value of this name, or `default`."""
        return super().get(cache_name() if key in CACHE_NAMES else key, default)


def _held(output: SessionOutput) -> Any:
    return output.get(cache_name())


# Adds the name that isn't a field, without transformers' warning about the older name.
setattr(SessionOutput, next(name for name in CACHE_NAMES if name != cache_name()), property(_held))
