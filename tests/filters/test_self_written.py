"""Texts that a model writes: they go on from what is given, by seed, from the likeliest tokens."""

import pytest
import torch
from tiny import FAMILIES

from qfpass.attention.find import find_attentions
from qfpass.capture.export import capture
from qfpass.capture.ranks import Ranks
from qfpass.filters import self_written
from qfpass.filters.self_written import OwnText, random_starts, write_text


def test_a_text_goes_on_from_its_first_tokens() -> None:
    captured = capture(FAMILIES["llama"]())
    attentions = find_attentions(captured, None)
    first = torch.randint(61, (3, 9), generator=torch.Generator().manual_seed(0))
    one, again, other = (write_text(captured, attentions, first, 40, seed=seed) for seed in (0, 0, 1))
    assert one.shape == (3, 40) and torch.equal(one[:, :9], first)
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert torch.equal(random_starts(captured, 4), random_starts(captured, 4))


@torch.no_grad()
def test_of_one_likely_token_it_is_greedy() -> None:
    model = FAMILIES["llama"]()
    captured = capture(model)
    first = random_starts(captured, 2)
    written = write_text(captured, find_attentions(captured, None), first, 20, most_likely=1)
    assert torch.equal(written[:, 1:], model(written).logits[:, :-1].argmax(-1))


class OneIsLate(Ranks):
    """Processes of which one never has time left."""

    def all(self, value: bool) -> bool:
        self.asked = getattr(self, "asked", 0) + 1
        return value and self.asked < self_written.LEAST


@pytest.mark.parametrize("late", ["this process", "another one", "none"])
def test_a_slow_model_writes_less(late: str, monkeypatch: pytest.MonkeyPatch) -> None:
    captured = capture(FAMILIES["llama"]())
    if late == "this process":
        monkeypatch.setattr(self_written, "SECONDS", -1.0)
    ranks = OneIsLate() if late == "another one" else Ranks()
    text = OwnText(captured, find_attentions(captured, None), 200, ranks)
    tokens = self_written.TOKENS if late == "none" else self_written.LEAST
    assert text.ids.shape == (self_written.ROWS, tokens) and text.ids is text.ids
    joined = text.joined(4, 96)
    assert joined.shape == (4 if late == "none" else 2, 96)
    assert torch.equal(joined[0], text.ids.flatten()[:96])
