"""One plain pass of a decoder: the arguments that it takes, the logits in what it gives, and how long a text
it takes."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..errors import CaptureError

_ALWAYS = {"use_cache": False, "return_dict": True}  # given where they are accepted
_ONE_ROW = {"input_pos", "cache_position"}  # positions of this name are [S], one row for the whole batch


def call_decoder(model: nn.Module, ids: torch.Tensor, positions: torch.Tensor) -> Any:
    """What `model` gives for ids [B, S] at positions [B, S].

    Positions go in as `position_ids`, else as an argument that has no default and "pos" in its name; a
    model without either counts by itself.
    """
    accepted = inspect.signature(model.forward).parameters
    keywords: dict[str, Any] = {name: value for name, value in _ALWAYS.items() if name in accepted}
    name = _positions_argument(accepted)
    if name is not None:
        keywords[name] = positions[0] if name in _ONE_ROW else positions
    return model(ids, **keywords)


def _positions_argument(accepted: Mapping[str, inspect.Parameter]) -> str | None:
    if "position_ids" in accepted:
        return "position_ids"
    required = (name for name, parameter in accepted.items() if parameter.default is parameter.empty)
    return next((name for name in required if "pos" in name), None)


def logits_of(output: Any) -> torch.Tensor:
    """The logits [B, S, V] in what a decoder returned."""
    logits = getattr(output, "logits", output)
    if isinstance(logits, tuple) and logits:
        logits = logits[0]
    if not isinstance(logits, torch.Tensor) or logits.dim() != 3:
        raise CaptureError(
            f"the model returned {type(output).__name__}, not logits [batch, tokens, vocabulary] or an "
            "object with such .logits: wrap it in a module that does."
        )
    return logits


def own_context_length(model: nn.Module) -> int | None:
    """Tokens that a model says it can take, None if it doesn't."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    length = getattr(text, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 1 else None
