"""Tokens are chosen as transformers' generate chooses them."""

from typing import Any

import pytest
import torch
from served import alone, prompt, served_model

from qfpass.errors import InputError
from qfpass.serving.sampling import Sampler, Sampling


@pytest.fixture(scope="module")
def model() -> Any:
    return served_model()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.7},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.3, "top_k": 5},
        {"temperature": 1.0, "min_p": 0.2},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.3},
    ],
)
def test_a_seed_draws_what_generate_draws(model: Any, settings: dict[str, float]) -> None:
    ids = prompt(7)
    torch.manual_seed(11)
    asked = {"top_k": 0, **settings}
    wanted = model.generate(torch.tensor([ids]), do_sample=True, max_new_tokens=12, **asked)[0, 7:].tolist()
    assert alone(model, ids, 12, Sampling(seed=11, **settings)) == wanted


def test_without_temperature_the_likeliest_is_taken(model: Any) -> None:
    ids = prompt(7)
    for penalty in (1.0, 1.5):
        wanted = model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=12, repetition_penalty=penalty
        )
        assert alone(model, ids, 12, Sampling(repetition_penalty=penalty)) == wanted[0, 7:].tolist()


def test_openais_penalties_count_the_answers_tokens_alone() -> None:
    logits = torch.tensor([3.0, 2.5, 0.0])
    sampler = Sampler(Sampling(frequency_penalty=0.3, presence_penalty=0.1), [0, 0, 0])
    # After one 0 it counts 2.6, after two 2.3; after one 1 that counts 2.1.
    assert [sampler.choose(logits) for _ in range(4)] == [0, 0, 1, 0]


def test_a_bias_is_added_to_a_logit() -> None:
    sampler = Sampler(Sampling(logit_bias={2: 4.0, 0: -1.0}), [1])
    assert sampler.choose(torch.tensor([3.0, 2.5, 0.0])) == 2


def test_without_a_seed_draws_differ() -> None:
    logits = torch.zeros(1000)
    draws = {Sampler(Sampling(temperature=1.0), [1]).choose(logits) for _ in range(8)}
    assert len(draws) > 1


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.5}, {"top_k": -1},
        {"min_p": 2.0}, {"repetition_penalty": 0.0}, {"frequency_penalty": 3.0}, {"presence_penalty": -3.0},
        {"seed": 2**64}, {"logit_bias": {1: float("inf")}},
    ],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        Sampling(**settings)
