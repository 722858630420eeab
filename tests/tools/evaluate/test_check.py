"""`qfpass check` on a tiny model: the full cache beside bounded stores, on a text given or written."""

from typing import Any

import pytest
import torch
from torch import nn

from qfpass.errors import InputError
from qfpass.tools.evaluate import check

SETTINGS: dict[str, Any] = {"ratio": 8, "tokens": 200, "needles": 4, "backend": "eager", "progress": False}


@pytest.mark.parametrize("given", [True, False], ids=["a text", "the model's own"])
def test_both_are_measured(
    model: nn.Module, tokenizer: Any, essays: str, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "STEPS", 5)
    found = check.check(model, tokenizer, text=essays if given else None, **SETTINGS)
    slots = max(site.slots for site in found.compiled.sites)
    assert found.needles == 4 and slots < 200
    assert found.bounded.nbytes < found.full.nbytes / 2
    assert min(found.full.step, found.bounded.step) > 0
    for each in (found.full, found.bounded):
        assert each.perplexity.samples == check.ROWS and each.perplexity.perplexity > 1
    for word in ("keys and values, MiB", "perplexity", "needles found, of 4", f"{slots} slots a head"):
        assert word in str(found)


def test_what_the_model_writes_is_seeded(model: nn.Module, tokenizer: Any) -> None:
    state = torch.get_rng_state()
    one, again, other = (check.own_text(model, tokenizer, 40, seed) for seed in (0, 0, 1))
    assert one == again != other
    assert torch.equal(torch.get_rng_state(), state)


def test_too_little_text_is_refused(model: nn.Module, tokenizer: Any) -> None:
    with pytest.raises(InputError, match="two needles and 64 tokens"):
        check.check(model, tokenizer, **SETTINGS | {"needles": 1})
    with pytest.raises(InputError, match="too few for 4 pieces of 200"):
        check.check(model, tokenizer, text="a short text", **SETTINGS)
