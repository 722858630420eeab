"""The families of transformers that the census examines, and a tiny model of each."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from .tiny import tiny_config, tiny_model

KINDS: dict[str, Any] = {
    "causal": MODEL_FOR_CAUSAL_LM_MAPPING,
    "image-text": MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
}


def families() -> list[tuple[str, str]]:
    """Kind and name of all families: causal language models, and of images and text those that are others."""
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    images = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    others = [family for family, model in images.items() if causal.get(family) != model]
    return [*(("causal", family) for family in causal), *(("image-text", family) for family in others)]


def family_model(kind: str, family: str, fixed: Mapping[str, Any]) -> nn.Module:
    """A tiny model of a family; `fixed` are the fields of its configuration that must not be guessed."""
    return tiny_model(tiny_config(CONFIG_MAPPING[family], fixed), models=KINDS[kind])
