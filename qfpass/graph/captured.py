"""The captured graph of a decoder, and the example inputs that a trace reads."""

from dataclasses import dataclass

import torch
from torch import fx, nn

from ..errors import CaptureError
from .part import Part
from .vocabulary import vocabulary

# Rows and tokens of the example that a trace reads. They differ from each other and from sizes that models
# use, so that a dimension of that size can be recognised.
BATCH, LENGTH = 2, 11


@dataclass(frozen=True)
class Captured:
    """A decoder's graph: placeholders `input_ids` and `position_ids` [B, S], output logits [B, S, V].

    Attributes:
        module: the graph module; its parameters and buffers are the model's own tensors, not copies.
        device: the device of the model's first floating-point parameter.
        dtype: the dtype of that parameter.
        batch: the number of rows that the graph is made for, or None for any number.
        conditions: what the trace assumed about the inputs' sizes, as Python expressions.
        left_behind: the paths of the model's attributes, numbers and flags, that a traced call had changed.
        predicts: whether the output is logits over the vocabulary, and not hidden values or scores.
        part: what this process has of a model that is split over several; None if it is whole.
        whole_fingerprint: of the model that this is a part of; None if it is whole.
    """

    module: fx.GraphModule
    device: torch.device
    dtype: torch.dtype
    batch: int | None = None
    conditions: tuple[str, ...] = ()
    left_behind: tuple[str, ...] = ()
    predicts: bool = True
    part: Part | None = None
    whole_fingerprint: str | None = None


def device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype of a model's first floating-point parameter.

    Raises:
        CaptureError: the model has no floating-point parameter.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return parameter.device, parameter.dtype
    raise CaptureError(f"{type(model).__name__} has no floating-point parameters.")


def example_inputs(device: torch.device, batch: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The token ids (all 0) and positions that a trace reads, both [batch or BATCH, LENGTH] int64."""
    ids = torch.zeros(batch or BATCH, LENGTH, dtype=torch.long, device=device)
    return ids, torch.arange(LENGTH, device=device).expand(len(ids), -1).contiguous()


def id_limit(module: fx.GraphModule) -> int:
    """A number below which every id is one that a decoder's graph takes."""
    (output,) = module.graph.output_node().all_input_nodes
    size = int(output.meta["val"].shape[-1])
    return min(size, vocabulary(module) or size)


def vocabulary_of(captured: Captured) -> int | None:
    """Token ids are below this number; None if the graph doesn't show it."""
    known = captured.part.vocabulary if captured.part else None
    return known or vocabulary(captured.module)
