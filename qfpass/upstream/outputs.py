"""Outputs of compiled transformers models. They import transformers' models, so only calls import them."""

from dataclasses import dataclass
from typing import Any

from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)

from .cache import CACHE_NAMES, cache_name


class BothNames:
    """An output whose session has both names in any version: `past_key_values` and `cache`."""

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(cache_name() if key in CACHE_NAMES else key)  # type: ignore[misc]

    def __contains__(self, key: object) -> bool:
        return super().__contains__(cache_name() if key in CACHE_NAMES else key)  # type: ignore[misc]

    def get(self, key: Any, default: Any = None) -> Any:
        """The value of this name, or `default`."""
        return super().get(cache_name() if key in CACHE_NAMES else key, default)  # type: ignore[misc]


@dataclass
class SessionOutput(BothNames, CausalLMOutputWithPast):
    """Logits and the session."""


@dataclass
class HiddenOutput(BothNames, BaseModelOutputWithPast):
    """The last hidden values and the session."""


@dataclass
class ScoresOutput(BothNames, SequenceClassifierOutputWithPast):
    """A sequence classifier's scores, under the name of logits, and the session."""


def _held(output: Any) -> Any:
    return output.get(cache_name())


# Adds the name that isn't a field, without transformers' warning about the older name.
for _kind in (SessionOutput, HiddenOutput, ScoresOutput):
    setattr(_kind, next(name for name in CACHE_NAMES if name != cache_name()), property(_held))
