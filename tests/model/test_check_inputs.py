"""What a call may be given, and that a refused one changes nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bounded import CONTEXT, compiled, llama
from decoders import HEAD_DIM, decoder, text
from torch import nn
from transformers import DynamicCache

import qfpass
from qfpass.errors import FilterMismatchError, InputError, SessionError
from qfpass.filters import QFilters


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return compiled(llama())


@pytest.fixture(scope="module")
def other() -> nn.Module:
    return compiled(decoder())


def mask_with_a_hole() -> torch.Tensor:
    mask = torch.ones(1, 6, dtype=torch.long)
    mask[0, 3] = 0
    return mask


REFUSED: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "no ids": (dict, "input_ids is missing"),
    "a list": (lambda: {"input_ids": [[1, 2]]}, "input_ids is missing"),
    "float ids": (lambda: {"input_ids": torch.ones(1, 6)}, "must be integers"),
    "bool ids": (lambda: {"input_ids": torch.ones(1, 6, dtype=torch.bool)}, "must be integers"),
    "1-D ids": (lambda: {"input_ids": text(6)[0]}, r"must be \[batch, tokens\]"),
    "empty prompt": (lambda: {"input_ids": text(6)[:, :0]}, "prompt is empty"),
    "too long": (lambda: {"input_ids": text(CONTEXT + 1)}, f"context length of {CONTEXT}"),
    "hole in mask": (
        lambda: {"input_ids": text(6), "attention_mask": mask_with_a_hole()},
        "attention_mask has zeros",
    ),
    "shape of mask": (
        lambda: {"input_ids": text(6), "attention_mask": torch.ones(1, 7)},
        r"attention_mask has shape \(1, 7\)",
    ),
    "4-D mask": (
        lambda: {"input_ids": text(6), "attention_mask": torch.ones(1, 1, 6, 6)},
        "attention_mask has shape",
    ),
    "positions": (
        lambda: {"input_ids": text(6), "position_ids": torch.arange(1, 7)[None]},
        "position_ids must continue",
    ),
    "number of positions": (
        lambda: {"input_ids": text(6), "position_ids": torch.arange(5)[None]},
        "position_ids must continue",
    ),
    "embeddings": (
        lambda: {"input_ids": text(6), "inputs_embeds": torch.ones(1, 6, 32)},
        "inputs_embeds",
    ),
    "attentions": (
        lambda: {"input_ids": text(6), "output_attentions": True},
        "output_attentions",
    ),
    "negative logits_to_keep": (
        lambda: {"input_ids": text(6), "logits_to_keep": -1},
        "logits_to_keep",
    ),
    "logits_to_keep outside": (
        lambda: {"input_ids": text(6), "logits_to_keep": torch.tensor([6])},
        "logits_to_keep",
    ),
    "labels of some logits": (
        lambda: {"input_ids": text(6), "labels": text(6), "logits_to_keep": 2},
        "labels need the logits of all tokens: leave logits_to_keep out",
    ),
    "labels of another shape": (
        lambda: {"input_ids": text(6), "labels": text(5)},
        r"labels must be integers of the shape of the ids, \[1, 6\]",
    ),
    "labels predicted from padding": (
        lambda: {
            "input_ids": text(6),
            "labels": text(6),
            "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]]),
        },
        "label of row 0 at column 2 is predicted from padding",
    ),
}


@pytest.mark.parametrize(("arguments", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused_by_name_and_nothing_read(
    model: nn.Module, arguments: Callable[[], dict[str, Any]], reason: str
) -> None:
    session = model.session()
    with pytest.raises(InputError, match=reason):
        model(**arguments(), past_key_values=session)
    assert session.tokens_seen == 0
    assert isinstance(InputError("x"), qfpass.QFPassError)


def test_a_refused_call_leaves_the_session_usable(model: nn.Module) -> None:
    ids = text(20)
    session, untouched = model.session(), model.session()
    model(ids[:, :12], past_key_values=session)
    model(ids[:, :12], past_key_values=untouched)
    for bad in (ids.float(), text(CONTEXT), text(3, batch=2), ids[:, :0]):
        with pytest.raises(InputError):
            model(bad, past_key_values=session)
        assert session.tokens_seen == 12
    with pytest.raises(InputError, match="continue from the 12 tokens seen"):
        model(ids[:, 12:], position_ids=torch.arange(8)[None], past_key_values=session)
    after = [model(ids[:, 12:], past_key_values=s).logits for s in (session, untouched)]
    assert torch.equal(*after)
    assert session.tokens_seen == 20


def test_good_masks_and_positions_change_nothing(model: nn.Module) -> None:
    ids = text(20)
    plain, told = model.session(), model.session()
    for a, b in ((0, 12), (12, 13), (13, 20)):
        wanted = model(ids[:, a:b], past_key_values=plain).logits
        actual = model(
            ids[:, a:b].int(),
            attention_mask=torch.ones(1, b, dtype=torch.long),
            position_ids=torch.arange(a, b)[None],
            past_key_values=told,
        ).logits
        assert torch.equal(actual, wanted)


def test_another_cache_is_refused(model: nn.Module) -> None:
    with pytest.raises(SessionError, match=r"DynamicCache.*model\.session\(\)"):
        model(text(6), past_key_values=DynamicCache())


def test_a_session_of_another_model_is_refused(model: nn.Module, other: nn.Module) -> None:
    session = other.session()
    with pytest.raises(SessionError, match="another compiled model"):
        model(text(6), past_key_values=session)
    with pytest.raises(SessionError, match="another compiled model"):
        model.generate(text(6), past_key_values=session, max_new_tokens=2)
    assert session.tokens_seen == 0


def test_filters_of_another_shape_print_both_sides() -> None:
    filters = QFilters(tuple(torch.ones(5, HEAD_DIM) for _ in range(3)), source={"from": "elsewhere"})
    with pytest.raises(FilterMismatchError) as error:
        compiled(decoder(), score="published", filters=filters)
    message = str(error.value)
    assert "model:   2 layers: 2 of 6 query heads, 2 key/value heads, head dimension 8" in message
    assert "filters: 3 layers: 3 of 5 key/value heads, head dimension 8" in message
    assert "elsewhere" in message
