"""Logits and losses as evaluation loops ask for them, equal to the original's where every key is kept."""

from typing import Any

import pytest
import torch
from bounded import run_plainly
from rows import padded, text
from tiny import FAMILIES
from torch import nn

import qfpass
from qfpass.errors import InputError


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def both(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    """An original and what it was compiled to, with every key kept."""
    original = FAMILIES[request.param]()
    return original, run_plainly(qfpass.compile(original, ratio=1, backend="eager", chunk=16, verify=False))


def batch(side: str) -> dict[str, torch.Tensor]:
    """Three rows, longer than a chunk; labels are the ids where there are tokens that follow another."""
    call = padded([text(n, seed=n) for n in (40, 23, 31)], side)
    labels = call["input_ids"].masked_fill(call["attention_mask"] == 0, -100)
    labels[torch.arange(3), call["attention_mask"].argmax(1)] = -100
    labels[:, 35] = -100
    # Without them GPT-2 counts padding on the left as positions.
    positions = (call["attention_mask"].cumsum(1) - 1).clamp(min=0)
    return {**call, "labels": labels, "position_ids": positions}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("more", [{}, {"num_items_in_batch": 7}, {"return_dict": False}], ids=str)
@torch.no_grad()
def test_the_loss_is_the_originals(
    both: tuple[nn.Module, nn.Module], side: str, more: dict[str, Any]
) -> None:
    losses = []
    for model in both:
        out = model(**batch(side), **more)
        losses.append(out[0] if more.get("return_dict") is False else out.loss)
        assert more or list(out.keys())[:2] == ["loss", "logits"]
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-4)


def test_a_loss_of_another_kind_is_refused(both: tuple[nn.Module, nn.Module], monkeypatch: Any) -> None:
    _, model = both
    monkeypatch.setattr(model, "loss_type", "ForSequenceClassification")
    with pytest.raises(InputError, match="labels= need a model with transformers' loss for causal"):
        model(text(6), labels=text(6))
    monkeypatch.undo()
    monkeypatch.setattr(model.config, "output_router_logits", True, raising=False)
    with pytest.raises(InputError, match="output_router_logits"):
        model(text(6), labels=text(6))


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_kept_in_any_order_and_more_than_once(
    both: tuple[nn.Module, nn.Module], side: str
) -> None:
    _, model = both
    call = batch(side) | {"labels": None}
    whole = model(**call).logits
    for chosen in ([3, 1], [39, 0, 17, 17, -1, 15, 16], [5]):
        kept = model(**call, logits_to_keep=torch.tensor(chosen)).logits
        torch.testing.assert_close(kept, whole[:, chosen], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_log_probabilities_of_a_text_in_windows(both: tuple[nn.Module, nn.Module]) -> None:
    """As lm-eval's rolling windows ask: texts of unequal lengths, padded on the right without a mask."""
    ids, length, found = text(90)[0], 32, []
    windows = [(ids[max(0, end - length) : end], min(length, end)) for end in (32, 64, 90)]
    inputs = torch.stack([nn.functional.pad(w[:-1], (0, length - len(w))) for w, _ in windows])
    for model in both:
        likely = model(inputs).logits.log_softmax(-1)
        rows = [likely[row, : len(w) - 1].gather(-1, w[1:, None])[:, 0] for row, (w, _) in enumerate(windows)]
        found.append(torch.cat(rows))
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
