"""The loss of labels, as the original computes it from its logits."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import InputError
from ..sessions.rows import TokenColumns

CAUSAL = "ForCausalLM"  # transformers' name of the shifted loss, which models without a name have too
NONE = -100  # a label that counts for nothing


def check_labels(
    model: Any, labels: torch.Tensor, shape: tuple[int, int], spans: Sequence[TokenColumns], kept: int
) -> None:
    """Refuse labels whose loss would not be the original's.

    Args:
        shape: of the call's ids, [B, S].
        spans: the columns of each row's tokens.
        kept: the number of columns whose logits are returned.

    Raises:
        InputError: they don't fit the ids, some logits aren't returned, or the model has another loss.
    """
    if not _has_causal_loss(model):
        raise InputError(
            "labels= need a model with transformers' loss for causal language models, which this one doesn't "
            "have: compute the loss from the logits."
        )
    if getattr(model.config, "output_router_logits", False):
        raise InputError(
            "labels= with config.output_router_logits adds a loss of the routers, whose logits a compiled "
            "decoder doesn't give: set output_router_logits=False, or use the original model."
        )
    if not isinstance(labels, torch.Tensor) or labels.shape != shape or labels.is_floating_point():
        raise InputError(f"labels must be integers of the shape of the ids, {list(shape)}.")
    if kept != shape[1]:
        raise InputError("labels need the logits of all tokens: leave logits_to_keep out.")
    for row, span in enumerate(spans):
        if span.tokens and span.start and int(labels[row, span.start]) != NONE:
            raise InputError(
                f"the label of row {row} at column {span.start} is predicted from padding, which has no "
                f"logits here: set it to {NONE}, or pad on the right."
            )


def _has_causal_loss(model: Any) -> bool:
    if not hasattr(model, "loss_function") or model.get_output_embeddings() is None:
        return False
    return getattr(model, "loss_type", None) in (None, CAUSAL)


def loss_of(
    model: Any, logits: torch.Tensor, labels: torch.Tensor, items: int | torch.Tensor | None
) -> torch.Tensor:
    """The loss [], by the model's own function, of labels [B, S] that `check_labels` has accepted.

    `items`: what the summed loss is divided by; None for the number of labels.
    """
    loss: torch.Tensor = model.loss_function(
        logits=logits, labels=labels.to(logits.device), vocab_size=logits.shape[-1], num_items_in_batch=items
    )
    return loss


def with_loss(output: Any, loss: torch.Tensor) -> Any:
    """An output of a compiled transformers model, a tuple or an object, with its loss in the first place."""
    if isinstance(output, tuple):
        return (loss, *output)
    held = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return type(output)(**(held | {"loss": loss}))
