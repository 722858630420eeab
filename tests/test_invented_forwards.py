"""Forwards that a generator invents, of habits that a session may not follow: right, or refused."""

import copy
import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from decoders import text
from habits import (
    ATTENTIONS,
    CONTEXT,
    HABITS,
    HOOKS,
    Habit,
    Invented,
    by_clamped_position,
    by_ids,
    by_own_position,
)
from hypothesis import event, given, settings
from hypothesis import strategies as st
from torch import nn

import qfpass
from qfpass.errors import QFPassError

Read = Sequence[tuple[torch.Tensor, torch.Tensor]]  # ids [B, S] and their logits
EXAMPLES = int(os.environ.get("QFPASS_EXAMPLES", "15"))


def invented(habits: Sequence[tuple[str, Habit, int]], attention: str, border: int) -> Invented:
    """With seeded weights, in eval mode."""
    torch.manual_seed(0)
    return Invented(habits, attention, border).eval()


@st.composite
def forwards(draw: st.DrawFn) -> Invented:
    """A decoder with up to two habits, some attention and perhaps a hook."""
    borders = st.integers(2, CONTEXT - 2)
    places = st.sampled_from(["first", "last", "logits"])
    habits = draw(st.lists(st.tuples(places, st.sampled_from(HABITS), borders), max_size=2))
    attention = draw(st.sampled_from(list(ATTENTIONS)))
    hook, border = draw(st.sampled_from(list(HOOKS))), draw(borders)
    model = invented(habits, attention, border)
    if (made := HOOKS[hook]) is not None:
        model.layers[0].register_forward_pre_hook(made(border))
    return model


def original(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The logits of a model that has read nothing yet."""
    return copy.deepcopy(model)(ids, torch.arange(ids.shape[1]).expand(len(ids), -1))


@given(model=forwards(), lengths=st.lists(st.integers(2, CONTEXT), min_size=2, max_size=3, unique=True))
@settings(max_examples=EXAMPLES)
@torch.no_grad()
def test_an_invented_forward_is_right_or_refused(model: Invented, lengths: list[int]) -> None:
    fresh = copy.deepcopy(model)
    try:
        compiled, read = read_at_once(model, (*lengths, CONTEXT))
    except QFPassError:
        event("refused")
        return
    event("right")
    check_right(compiled, read, fresh)


@pytest.mark.parametrize("habit", [by_own_position, by_clamped_position, by_ids])
@pytest.mark.parametrize("attention", ["causal", "log_n", "windowed"])
@torch.no_grad()
def test_what_each_token_does_by_itself_is_not_refused(habit: Habit, attention: str) -> None:
    model = invented([("first", habit, 9), ("logits", habit, 5)], attention, 6)
    check_right(*read_at_once(model, (3, CONTEXT)), model)


@pytest.mark.parametrize("border", [4, 5, 9, 38])
def test_a_window_that_short_texts_do_not_have_is_refused(border: int) -> None:
    with pytest.raises(QFPassError, match=f"compared at {4 if border == 4 else ''}"):
        read_at_once(invented([], "windowed_past", border), (CONTEXT,))


@pytest.mark.parametrize("border", [2, 3])
@torch.no_grad()
def test_a_window_that_short_texts_fit_in_is_not_refused(border: int) -> None:
    model = invented([], "windowed_past", border)
    check_right(*read_at_once(model, (2, 3, 4, CONTEXT)), model)


def read_at_once(model: nn.Module, lengths: Sequence[int]) -> tuple[Any, Read]:
    """The compiled model and what it makes of texts.

    Raises:
        QFPassError: it is refused.
    """
    compiled: Any = qfpass.compile(model, ratio=1, context_length=CONTEXT, chunk=7, backend="eager")
    texts = [text(length, batch=2) for length in lengths]
    return compiled, [(ids, compiled(ids)) for ids in texts]


def check_right(compiled: Any, read: Read, fresh: nn.Module) -> None:
    """Compare texts read at once, and read in parts, with a model that has read nothing yet."""
    for ids, logits in read:
        expected = original(fresh, ids)
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(original(fresh, ids), expected)
        _check_in_parts(compiled, fresh, ids, expected)


def _check_in_parts(compiled: Any, fresh: nn.Module, ids: torch.Tensor, expected: torch.Tensor) -> None:
    """A text that grows is the same text, unless the original itself reads its start otherwise alone."""
    ends = sorted({0, 1, 2, ids.shape[1] // 2, ids.shape[1] - 1, ids.shape[1]})
    for end in ends[1:]:
        if not torch.allclose(original(fresh, ids[:, :end]), expected[:, :end], atol=1e-3, rtol=1e-3):
            return
    session = compiled.session()
    parts = [compiled(ids[:, a:b], past_key_values=session) for a, b in pairwise(ends)]
    torch.testing.assert_close(torch.cat(parts, 1), expected, atol=1e-3, rtol=1e-3)
