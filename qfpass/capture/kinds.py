"""What a decoder gives for each token: logits over a vocabulary, hidden values, or scores of classes."""

from typing import Literal

import torch
from torch import nn

from ..errors import CaptureError
from ..graph.captured import device_and_dtype
from ..upstream.heads import backbone_of, has_output_head, is_pretrained, is_sequence_classifier

Kind = Literal["logits", "hidden", "scores"]


def kind_of(model: nn.Module) -> Kind:
    """What `model` gives for each token.

    "hidden" is a transformers model without a head, such as AutoModel's. "scores" is one for sequence
    classification, which returns a single token's.
    """
    if not is_pretrained(model):
        return "logits"
    if is_sequence_classifier(model):
        return "scores"
    if backbone_of(model) is not model or has_output_head(model):
        return "logits"
    from .decoder_call import call_decoder

    device = device_and_dtype(model)[0]
    ids = torch.zeros(1, 2, dtype=torch.long, device=device)
    with torch.no_grad():
        output = call_decoder(model, ids, torch.arange(2, device=device)[None])
    return "hidden" if getattr(output, "last_hidden_state", None) is not None else "logits"


def scores_head(model: nn.Module) -> nn.Module:
    """The layer of a sequence classifier that makes scores [B, S, classes] of the last hidden values.

    Raises:
        CaptureError: it isn't where transformers' decoders have it.
    """
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Module) or backbone_of(model) is model:
        raise CaptureError(
            f"{type(model).__name__} has no layer `score` after a decoder: compile the decoder inside it, "
            "and compute the scores from its last_hidden_state."
        )
    return head
