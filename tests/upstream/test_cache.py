"""What transformers promises of a cache's name, in calls and in outputs."""

import inspect
import logging

import pytest
import torch
from tiny import FAMILIES
from transformers import DynamicCache, GenerationMixin
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)

from qfpass.errors import InputError
from qfpass.upstream.cache import (
    CACHE_NAMES,
    cache_argument,
    cache_kwargs,
    cache_name,
    causal_output,
    columns_to_remove,
    give_both_names,
    hidden_output,
    scores_output,
)


def test_cache_name_is_what_models_take_and_generate_hands_on() -> None:
    model = FAMILIES["llama"]()
    assert cache_name() in inspect.signature(model.forward).parameters
    assert cache_name() in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    with torch.no_grad():
        out = model(torch.arange(3, 8)[None], **cache_kwargs(DynamicCache(config=model.config)))
    assert cache_name() in out.keys()  # noqa: SIM118  # an old name would be found, with a warning


def test_causal_output_has_the_session_under_both_names(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("transformers").propagate = True
    session, logits = object(), torch.zeros(1, 1, 3)
    out = causal_output(logits, session)
    assert isinstance(out, CausalLMOutputWithPast)
    for name in CACHE_NAMES:
        assert getattr(out, name) is out[name] is out.get(name) is session
        assert name in out
    assert list(out.keys()) == ["logits", cache_name()]
    assert out.to_tuple() == (logits, session)
    assert causal_output(logits, None).get("cache") is None
    assert not caplog.records


def test_give_both_names_to_what_generate_returns() -> None:
    model = FAMILIES["llama"]()
    out = model.generate(torch.arange(3, 8)[None], max_new_tokens=1, return_dict_in_generate=True)
    give_both_names(out)
    assert out.cache is out[cache_name()]


def test_one_of_two_names() -> None:
    a, b = object(), object()
    assert cache_argument(None, None) is None
    assert cache_argument(a, None) is cache_argument(None, a) is cache_argument(a, a) is a
    with pytest.raises(InputError, match="two names"):
        cache_argument(a, b)


def test_columns_to_remove_are_those_that_transformers_own_cache_removes() -> None:
    for argument in (-2, -1, 0, 1, 4, 5):
        cache = DynamicCache()
        cache.update(torch.zeros(1, 1, 4, 1), torch.zeros(1, 1, 4, 1), 0)
        try:
            cache.crop(argument)
        except ValueError:  # newer versions give positive numbers no meaning
            with pytest.raises(InputError, match=rf"crop\(-{argument}\)"):
                columns_to_remove(argument, 4)
        else:
            assert 4 - columns_to_remove(argument, 4) == cache.get_seq_length()


def test_hidden_output_has_the_session_under_both_names() -> None:
    session, hidden = object(), torch.zeros(1, 1, 3)
    out = hidden_output(hidden, session)
    assert isinstance(out, BaseModelOutputWithPast)
    assert out.last_hidden_state is hidden
    assert all(getattr(out, name) is out[name] is session for name in CACHE_NAMES)


def test_scores_output_has_the_session_under_both_names() -> None:
    session, scores = object(), torch.zeros(1, 3)
    out = scores_output(scores, session)
    assert isinstance(out, SequenceClassifierOutputWithPast)
    assert out.logits is scores
    assert all(getattr(out, name) is out[name] is session for name in CACHE_NAMES)
