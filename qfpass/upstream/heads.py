"""What transformers' models have behind their layers: an output head, a sequence classifier's, or nothing."""

import sys
from typing import Any

from torch import nn

from .entry import Needed


def is_pretrained(model: nn.Module) -> bool:
    """Whether `model` is transformers' own kind of model."""
    base: Any = getattr(sys.modules.get("transformers.modeling_utils"), "PreTrainedModel", None)
    return base is not None and isinstance(model, base)


def is_sequence_classifier(model: nn.Module) -> bool:
    """Whether a transformers model's class, or one that it derives from, is for sequence classification."""
    return any(kind.__name__.endswith("ForSequenceClassification") for kind in type(model).__mro__)


@Needed
def backbone_of(model: Any) -> nn.Module:
    """The part of a transformers model before its head; the model itself if it has none.

    Without it: models without a head, and sequence classifiers, can't be told from others.
    """
    backbone: nn.Module = model.base_model
    return backbone


@Needed
def has_output_head(model: Any) -> bool:
    """Whether a transformers model names a layer that makes logits over its vocabulary.

    Without it: models without a head can't be told from others.
    """
    return model.get_output_embeddings() is not None


@Needed
def padding_id_of(model: Any) -> int | None:
    """The id by which a sequence classifier tells padding from tokens; None if it has none.

    Without it: a classifier would give another token's scores than its original.
    """
    found: int | None = model.config.get_text_config().pad_token_id
    return found
