"""How transformers' models name what stands behind their layers."""

from tiny import FAMILIES
from torch import nn
from transformers import AutoModel, AutoModelForSequenceClassification

from qfpass.upstream.heads import (
    backbone_of,
    has_output_head,
    is_pretrained,
    is_sequence_classifier,
    padding_id_of,
)


def test_backbone_of_is_the_part_before_the_head() -> None:
    model = FAMILIES["llama"]()
    assert backbone_of(model) is model.model
    assert backbone_of(model.model) is model.model


def test_has_output_head_tells_a_language_model() -> None:
    model = FAMILIES["gpt2"]()
    assert has_output_head(model)
    assert not has_output_head(AutoModel.from_config(model.config))


def test_padding_id_of_is_the_config_s() -> None:
    model = AutoModelForSequenceClassification.from_config(FAMILIES["llama"]().config)
    assert is_sequence_classifier(model)
    model.config.pad_token_id = 5
    assert padding_id_of(model) == 5


def test_is_pretrained_tells_transformers_models() -> None:
    assert is_pretrained(FAMILIES["llama"]())
    assert not is_pretrained(nn.Linear(2, 2))
