"""What transformers' vision-language models call their parts."""

from tiny import FAMILIES
from vision import VISION_LANGUAGE

from qfpass.upstream.vision_language import counts_positions_by_axes, text_model_of, without_axes_state


def test_text_model_of_is_the_decoder_inside() -> None:
    llava, idefics = VISION_LANGUAGE["llava"](), VISION_LANGUAGE["idefics3"]()
    assert text_model_of(llava) is llava.model.language_model
    assert text_model_of(idefics) is idefics.model.text_model
    assert text_model_of(FAMILIES["llama"]()) is None
    assert text_model_of(llava.model.language_model) is None


def test_axes_are_told_and_their_state_is_forgotten() -> None:
    model = VISION_LANGUAGE["qwen2_vl"]()
    assert counts_positions_by_axes(model)
    assert not counts_positions_by_axes(VISION_LANGUAGE["llava"]())
    inner = model.model
    del inner.rope_deltas
    inner.__class__ = without_axes_state(type(inner), __name__)
    inner.rope_deltas = 3
    assert inner.rope_deltas is None
