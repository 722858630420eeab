"""Where a request says nothing, the model's own settings hold."""

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import GenerationConfig

from qfpass.serving import Sampling
from qfpass.serving.model_defaults import default_sampling, stop_tokens


def model(**settings: Any) -> Any:
    return SimpleNamespace(generation_config=GenerationConfig(**settings))


def test_a_models_own_settings_are_the_default() -> None:
    sampled = model(do_sample=True, temperature=0.6, top_p=0.95, top_k=20)
    assert default_sampling(sampled) == Sampling(temperature=0.6, top_p=0.95, top_k=20)
    greedy = model(do_sample=False, temperature=0.6, repetition_penalty=1.1)
    assert default_sampling(greedy) == Sampling(repetition_penalty=1.1)
    assert default_sampling(object()) == Sampling()


@pytest.mark.parametrize(("ends", "wanted"), [(None, {7}), (3, {3, 7}), ([3, 4], {3, 4, 7})])
def test_an_answer_ends_at_each_end_of_text(ends: Any, wanted: set[int]) -> None:
    tokenizer = SimpleNamespace(eos_token_id=7)
    assert stop_tokens(model(eos_token_id=ends), tokenizer) == wanted
    assert stop_tokens(object(), SimpleNamespace(eos_token_id=None)) == set()
