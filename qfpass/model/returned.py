"""Find the form of output of a model that isn't transformers', so that the compiled one returns the same."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..capture.decoder_call import call_decoder
from ..errors import CaptureError
from ..upstream.cache import causal_output

MakeOutput = Callable[[torch.Tensor, Any], Any]
"""A function (logits [B, S, V], session) -> the output that the original would return."""


@torch.no_grad()
def output_maker(model: nn.Module, device: torch.device) -> MakeOutput | None:
    """A function that makes outputs like `model`'s; None for a transformers model.

    The model is called once, on two tokens. It may return logits alone, in a tuple, or as an attribute.

    Raises:
        CaptureError: its tuple holds other values than logits.
    """
    from transformers import PreTrainedModel  # takes seconds to import

    if isinstance(model, PreTrainedModel):
        return None
    ids = torch.zeros(1, 2, dtype=torch.long, device=device)
    output = call_decoder(model, ids, torch.arange(2, device=device)[None])
    if isinstance(output, torch.Tensor):
        return lambda logits, session: logits
    if isinstance(output, tuple):
        return _tuple_like(output, type(model).__name__)
    return causal_output


def _tuple_like(output: Any, name: str) -> MakeOutput:
    """A function that makes tuples like `output`, with other logits in the first place."""
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
