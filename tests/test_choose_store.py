"""What "auto" stores: few bits with a ratio, where predictions stay; elsewhere the model's dtype."""

from typing import Any

import pytest
import torch
from tiny import FAMILIES

import qfpass
from qfpass import choose_store

SETTINGS: dict[str, Any] = {"backend": "eager", "score": "recency", "context_length": 200}


def stored(model: torch.nn.Module, **settings: Any) -> set[str]:
    return {site.stored for site in qfpass.report(qfpass.compile(model, **SETTINGS | settings)).sites}


def test_a_ratio_takes_few_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES["qwen2"](head_dim=32)
    monkeypatch.setattr(choose_store, "MOST_NATS", 1.0)
    assert stored(model, ratio=4) == {"int8-int4"}
    assert stored(FAMILIES["qwen2"](head_dim=16), ratio=4) == {"int8"}  # four bits need groups of 32
    monkeypatch.setattr(choose_store, "MOST_NATS", 0.0)
    assert stored(model, ratio=4) == {"float32"}


@pytest.mark.parametrize(
    "settings",
    [
        {"budget": 60},
        {"ratio": 1},
        {},
        {"ratio": 4, "store_dtype": None},
        {"ratio": 2, "overflow": "rerotate"},
    ],
    ids=str,
)
def test_the_models_dtype_elsewhere(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose_store, "MOST_NATS", 1.0)
    assert stored(FAMILIES["qwen2"](head_dim=32), **settings) == {"float32"}


def test_no_more_bits_are_tried_than_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    tried, predictions = [], choose_store.predictions

    def note(*arguments: Any) -> torch.Tensor:
        tried.append(arguments[3])
        return predictions(*arguments)

    monkeypatch.setattr(choose_store, "predictions", note)
    monkeypatch.setattr(choose_store, "MOST_NATS", 1.0)
    assert stored(FAMILIES["qwen2"](head_dim=64), ratio=4) == {"int8-int4"}
    assert tried == [None, "int8-int4"]
