"""Methods and budgets: slots for a prompt, one compile a budget."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from qfpass.errors import ConfigError
from qfpass.tools import evaluate
from qfpass.tools.evaluate import protocol

Ids = Callable[..., torch.Tensor]


def test_slots_of_the_two_protocols() -> None:
    assert [evaluate.Method("recency", budget=100).slots(n) for n in (10, 4000)] == [100, 100]
    method = evaluate.Method("recency", ratio=8)
    assert [method.slots(n) for n in (1024, 1025, 2048, 2100)] == [128, 136, 256, 264]


def test_a_ratio_in_eight_bits_is_of_bytes(model: nn.Module, random_ids: Ids) -> None:
    method = evaluate.Method("recency", ratio=4, recent=3, sinks=1, store_dtype=torch.int8)
    assert str(method) == "recency 4x int8"
    bounded, own = (
        evaluate.Bounded(model, method),
        evaluate.Bounded(model, evaluate.Method("recency", ratio=4)),
    )
    reader = evaluate.open_reader(bounded, 96)
    reader.prefill(random_ids(1, 96))
    assert own.slots(96) == 24 < bounded.slots(96) == reader.slots < 96
    with pytest.raises(ConfigError, match="leave store_dtype out"):
        evaluate.Method("snapkv", ratio=4, store_dtype=torch.int8)


def test_every_distinct_budget_compiles_once(
    model: nn.Module, random_ids: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = protocol.compile_budget

    def counted(model: nn.Module, slots: int, *rest: Any) -> Any:
        asked.append(slots)
        return real(model, slots, *rest)

    monkeypatch.setattr(protocol, "compile_budget", counted)
    bounded = evaluate.Bounded(model, evaluate.Method("knorm", ratio=4, sinks=1, recent=3))
    for tokens in (60, 64, 100, 61):
        reader = evaluate.open_reader(bounded, tokens)
        reader.prefill(random_ids(1, tokens))
        assert reader.slots == bounded.method.slots(tokens)
        assert reader.footprint.slots == reader.slots
    assert asked == [16, 32]


def test_a_method_is_the_compile_that_it_names(model: nn.Module, compiled: Any, random_ids: Ids) -> None:
    ids = random_ids(2, 60)
    bounded = evaluate.Bounded(model, evaluate.Method("recency", budget=16))
    assert evaluate.perplexity(bounded, ids) == evaluate.perplexity(compiled(budget=16), ids)


def test_rows_begin_with_the_uncompressed_model(model: nn.Module) -> None:
    methods = [evaluate.Method("recency", ratio=8), evaluate.Method("keydiff", budget=32)]
    rows = evaluate.with_methods(model, methods, {"skip_layers": (0,)})
    assert list(rows) == ["uncompressed", "recency 8x", "keydiff 32 slots"]
    assert rows["uncompressed"] is model
    bounded = rows["recency 8x"]
    assert isinstance(bounded, evaluate.Bounded)
    assert bounded.compile_options == {"skip_layers": (0,)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": "best", "budget": 9}, "score must be one of"),
        ({"score": "recency"}, "exactly one"),
        ({"score": "recency", "budget": 9, "ratio": 2}, "exactly one"),
        ({"score": "recency", "ratio": 1}, "more than 1"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate.Method(**settings)
