"""Readers: a text read in pieces is the text read at once, whatever keeps it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import PlainDecoder
from torch import nn

from qfpass.errors import InputError
from qfpass.tools.evaluate import open_reader

Ids = Callable[..., torch.Tensor]


@pytest.mark.parametrize("kind", ["plain", "compiled"])
def test_pieces_give_the_logits_of_the_whole(
    model: nn.Module, compiled: Any, random_ids: Ids, kind: str
) -> None:
    ids = random_ids(2, 600)
    with torch.no_grad():
        whole = model(input_ids=ids).logits
    reader = open_reader(model if kind == "plain" else compiled(ratio=1), 600)
    assert reader.slots is None
    reader.prefill(ids[:, :550])
    parts = [reader.read(ids[:, a:b]) for a, b in ((550, 551), (551, 580))]
    last = reader.read(ids[:, 580:], keep=3)
    assert last.shape[1] == 3
    torch.testing.assert_close(torch.cat(parts, 1), whole[:, 550:580], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(last, whole[:, -3:], atol=1e-4, rtol=1e-4)


def test_slots_are_those_of_bounded_layers(compiled: Any) -> None:
    assert open_reader(compiled(budget=16), 10).slots == 16
    assert open_reader(compiled(budget=16, skip_layers=(0,)), 10).slots == 16


def test_a_model_without_a_cache_is_refused() -> None:
    with pytest.raises(InputError, match="ratio=1"):
        open_reader(PlainDecoder(), 10)
