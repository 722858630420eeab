"""Models whose calls leave something behind: refused where a later call reads it, and left as they were."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from decoders import Decoder

import qfpass
from qfpass.errors import QFPassError

Change = Callable[["Leaving", int], bool]
"""(model, length) -> whether the call doubles its logits; it may leave something in the model."""


class Leaving(Decoder):
    """Leaves something behind in every call."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change, self.longest, self.was_long, self.lengths, self.table = change, 0, False, [0], {}

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        logits = super().forward(input_ids, position_ids)
        return 2 * logits if self.change(self, input_ids.shape[1]) else logits


def longest(border: int) -> Change:
    def change(model: Leaving, length: int) -> bool:
        model.longest = max(model.longest, length)
        return model.longest > border

    return change


def flag(border: int) -> Change:
    def change(model: Leaving, length: int) -> bool:
        was, model.was_long = model.was_long, length > border
        return was

    return change


def in_a_list(border: int) -> Change:
    def change(model: Leaving, length: int) -> bool:
        model.lengths.append(length)
        return max(model.lengths) > border

    return change


def noted_only(border: int) -> Change:
    """Leaves numbers that no call reads."""

    def change(model: Leaving, length: int) -> bool:
        model.longest, model.was_long = length, length > border
        return False

    return change


def made_once(border: int) -> Change:
    """Makes a value in the first call and keeps it."""

    def change(model: Leaving, length: int) -> bool:
        model.table.setdefault("mean", torch.arange(border).float().mean())
        return False

    return change


def compiled(model: Leaving) -> Any:
    return qfpass.compile(model, ratio=1, context_length=40, backend="eager")


@pytest.mark.parametrize("border", [1, 2, 5, 15, 30])
@pytest.mark.parametrize("change", [longest, flag, in_a_list])
def test_what_a_later_call_reads_is_refused(change: Callable[[int], Change], border: int) -> None:
    model = Leaving(change(border)).eval()
    with pytest.raises(QFPassError):
        compiled(model)
    assert (model.longest, model.was_long, model.lengths) == (0, False, [0])


@pytest.mark.parametrize("change", [noted_only, made_once])
@torch.no_grad()
def test_what_no_later_call_reads_is_not_refused(change: Callable[[int], Change]) -> None:
    model = Leaving(change(5)).eval()
    ids = torch.arange(12)[None] % 7
    logits = compiled(model)(ids)
    assert (model.longest, model.was_long, model.table) == (0, False, {})
    torch.testing.assert_close(logits, model(ids, torch.arange(12)[None]), atol=1e-5, rtol=1e-4)


def test_the_message_names_what_calls_change() -> None:
    with pytest.raises(QFPassError, match="each call changes its was_long"):
        compiled(Leaving(flag(30)).eval())


class RescalesOnce(Decoder):
    """Divides a weight in place in the first call, and notes that in a flag."""

    is_rescaled = False

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        if not self.is_rescaled:
            with torch.no_grad():
                self.head.weight.div_(2)
            self.is_rescaled = True
        return super().forward(input_ids, position_ids)


def test_a_flag_stays_with_the_weights_that_it_tells_of() -> None:
    torch.manual_seed(0)
    model = RescalesOnce().eval()
    expected = model.head.weight.detach() / 2
    with contextlib.suppress(QFPassError):
        qfpass.compile(model, ratio=1, context_length=40, backend="eager")
    torch.testing.assert_close(model.head.weight.detach(), expected)
    assert model.is_rescaled
