"""What a compiled model of transformers returns. Imports its models, so that only calls import this."""

from dataclasses import dataclass
from typing import Any

from transformers.modeling_outputs import CausalLMOutputWithPast

from .cache import NAMES, cache_name


@dataclass
class SessionOutput(CausalLMOutputWithPast):
    """Logits, and the session as `past_key_values` and as `cache`, whichever of them transformers has."""

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(cache_name() if key in NAMES else key)

    def __contains__(self, key: object) -> bool:
        return super().__contains__(cache_name() if key in NAMES else key)

    def get(self, key: Any, default: Any = None) -> Any:
        """The value of this name, or `default`."""
        return super().get(cache_name() if key in NAMES else key, default)


def _held(output: SessionOutput) -> Any:
    return output.get(cache_name())


# The other name than the field's, without the warning of the older one.
setattr(SessionOutput, next(name for name in NAMES if name != cache_name()), property(_held))
