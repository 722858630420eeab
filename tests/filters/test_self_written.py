"""Texts that a model writes: they go on from what is given, by seed, from the likeliest tokens."""

import torch
from tiny import FAMILIES

from qfpass.attention.find import find_attentions
from qfpass.capture.export import capture
from qfpass.filters.self_written import random_starts, write_text


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
