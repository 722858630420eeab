"""What a module that isn't transformers' returns beside its logits: a compiled one returns the same."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..errors import CaptureError
from ..graph.call import call_decoder
from ..upstream.cache import causal_output

Returned = Callable[[torch.Tensor, Any], Any]
"""(logits, session) -> what the module would return."""


@torch.no_grad()
def returned_by(model: nn.Module, device: torch.device) -> Returned | None:
    """For a model that returns logits alone, in a tuple, or as an attribute; None for one of transformers.

    Raises:
        CaptureError: a tuple has more than logits in it.
    """
    from transformers import PreTrainedModel  # takes seconds to import

    if isinstance(model, PreTrainedModel):
        return None
    ids = torch.zeros(1, 2, dtype=torch.long, device=device)
    output = call_decoder(model, ids, torch.arange(2, device=device)[None])
    if isinstance(output, torch.Tensor):
        return lambda logits, session: logits
    if isinstance(output, tuple):
        return _in_place_of(output, type(model).__name__)
    return causal_output


def _in_place_of(output: Any, name: str) -> Returned:
    others = [type(other).__name__ for other in output[1:] if other is not None]
    if others:
        raise CaptureError(
            f"{name} returns its logits with {', '.join(others)}, and a compiled decoder computes logits "
            "only: wrap it in a module that returns the logits alone, or None in the others' places."
        )
    rest = tuple(output[1:])

    def returned(logits: torch.Tensor, session: Any) -> Any:
        named = hasattr(output, "_fields")
        return type(output)(logits, *rest) if named else type(output)((logits, *rest))

    return returned
