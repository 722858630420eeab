"""How flash-attn is called, by a stand-in that keeps to its documented interface, so without a GPU."""

import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from qfpass.errors import InputError
from qfpass.kernels import reference
from qfpass.kernels.cuda import flash_attn


def flash_attn_func(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    return_attn_probs: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, None]:
    """[B, S, H, D] operands; query i stands at i + Sk - Sq and sees `window_size` keys either side."""
    assert dropout_p == 0.0
    assert softmax_scale is not None
    assert return_attn_probs
    left, right = window_size[0], 0 if causal else window_size[1]
    group = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group, dim=2), v.repeat_interleave(group, dim=2)
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * softmax_scale
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    place = torch.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
    keys = torch.arange(k.shape[1])
    hidden = (left >= 0) & (keys < place - left) | (right >= 0) & (keys > place + right)
    logits = logits.masked_fill(hidden, float("-inf"))
    return torch.einsum("bhqk,bkhd->bqhd", logits.softmax(-1), v), logits.logsumexp(-1), None


@pytest.fixture
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("flash_attn")
    module.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", module)


@pytest.mark.usefixtures("_stand_in")
@pytest.mark.parametrize(
    ("queries", "keys", "form"),
    [
        (1, 9, {}),
        (6, 9, {}),
        (6, 6, {"causal": True}),
        (6, 9, {"window": 1}),
        (6, 9, {"window": 4}),
        (6, 9, {"window": 4, "causal": True}),
        (6, 6, {"window": 50}),
        (6, 6, {"causal": True, "softcap": 0.5}),
        (6, 9, {"bias": torch.linspace(-1, 1, 54).view(1, 1, 6, 9), "softcap": 0.5}),
    ],
)
def test_calls_flash_attn_by_its_rules(queries: int, keys: int, form: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, length, 8, generator=generator)
        for heads, length in ((6, queries), (2, keys), (2, keys))
    )
    actual = flash_attn.attend(query, key, value, scale=0.3, **form)
    torch.testing.assert_close(actual, reference.attend(query, key, value, scale=0.3, **form))


@pytest.mark.usefixtures("_stand_in")
def test_refuses_what_the_contract_does_not_define() -> None:
    query, key = torch.zeros(1, 1, 3, 8), torch.zeros(1, 1, 4, 8)
    with pytest.raises(InputError, match="3 queries but 4 keys"):
        flash_attn.attend(query, key, key, scale=1.0, causal=True)
