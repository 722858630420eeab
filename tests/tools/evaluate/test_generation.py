"""Long generation: agreement counted by hand."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qfpass.errors import InputError
from qfpass.tools import evaluate

Ids = Callable[..., torch.Tensor]


def test_greedy_is_generate(model: Any, compiled: Any, random_ids: Ids) -> None:
    ids = random_ids(3, 20)
    expected = model.generate(ids, max_new_tokens=30, min_new_tokens=30, do_sample=False)[:, 20:]
    for each in (model, compiled(ratio=1)):
        written, footprint = evaluate.greedy(each, ids, 30, batch=2)
        assert written.tolist() == expected.tolist()
        assert footprint.slots is None


def test_no_compression_agrees_in_everything(model: nn.Module, compiled: Any, random_ids: Ids) -> None:
    result = evaluate.generation(compiled(ratio=1), model, random_ids(2, 20), new_tokens=25)
    assert result.equal[0] == 1.0
    assert result.common_prefix[0] == 25


def test_a_bounded_text_is_compared_token_by_token(model: nn.Module, compiled: Any, random_ids: Ids) -> None:
    bounded, ids = compiled(budget=16), random_ids(3, 40)
    result = evaluate.generation(bounded, model, ids, new_tokens=30, batch=2)
    own, _ = evaluate.greedy(model, ids, 30)
    written, _ = evaluate.greedy(bounded, ids, 30)
    assert not torch.equal(own, written)
    logs = []
    for row, part in enumerate(result.continuations):
        text, other = written[row].tolist(), own[row].tolist()
        assert list(part.ids) == text
        assert part.equal == pytest.approx(sum(a == b for a, b in zip(text, other, strict=True)) / 30)
        leading = next((i for i in range(30) if text[i] != other[i]), 30)
        assert part.common_prefix == leading
        with torch.no_grad():
            logits = model(input_ids=torch.cat([ids[row], written[row]])[None]).logits[0, 39:-1]
        logs.append(float(F.cross_entropy(logits, written[row])))
        assert part.perplexity == pytest.approx(math.exp(logs[-1]), rel=1e-4)
    whole, error = result.perplexity
    assert whole == pytest.approx(math.exp(sum(logs) / 3), rel=1e-4)
    assert error == pytest.approx(whole * float(torch.tensor(logs).std()) / 3**0.5, rel=1e-4)
    assert result.footprint.slots == 16


def test_expected_saves_the_uncompressed_run(model: nn.Module, random_ids: Ids) -> None:
    ids = random_ids(2, 10)
    wrong = evaluate.greedy(model, ids, 8)[0].clone()
    wrong[:, 3] += 1
    result = evaluate.generation(model, model, ids, new_tokens=8, expected=wrong)
    assert result.common_prefix[0] == 3
    assert result.equal[0] == 7 / 8
    with pytest.raises(InputError, match="expected"):
        evaluate.generation(model, model, ids, new_tokens=9, expected=wrong)


def test_a_prompt_of_one_token(model: nn.Module, random_ids: Ids) -> None:
    assert evaluate.generation(model, model, random_ids(1, 1), new_tokens=3).equal[0] == 1.0
