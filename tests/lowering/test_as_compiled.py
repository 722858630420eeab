"""Autocast and another default dtype around compile and calls change nothing of what is computed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from bounded import llama

import qfpass
from qfpass.errors import InputError, QFPassError

SETTINGS = {"ratio": None, "budget": 16, "score": "recency", "context_length": 64, "backend": "eager"}


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def text() -> torch.Tensor:
    return torch.randint(1, 50, (2, 40), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("store_dtype", [None, torch.int8])
@pytest.mark.parametrize("around", ["autocast", "default dtype"])
def test_settings_around_compile_and_calls(around: str, store_dtype: torch.dtype | None) -> None:
    def inside() -> Any:
        if around == "autocast":
            return torch.autocast("cpu", dtype=torch.bfloat16)
        return default_dtype(torch.bfloat16)

    model = llama()
    plain: Any = qfpass.compile(model, **SETTINGS, store_dtype=store_dtype)
    expected = plain(text()).logits
    written = plain.generate(text(), max_new_tokens=6, do_sample=False, pad_token_id=0)
    with inside():
        torch.testing.assert_close(plain(text()).logits, expected, rtol=0, atol=0)
        again = plain.generate(text(), max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert torch.equal(again, written)
        made: Any = qfpass.compile(model, **SETTINGS, store_dtype=store_dtype)
        torch.testing.assert_close(made(text()).logits, expected, rtol=0, atol=1e-6)
        assert torch.get_default_dtype() is (torch.float32 if around == "autocast" else torch.bfloat16)
    torch.testing.assert_close(made(text()).logits, expected, rtol=0, atol=1e-6)


def test_a_call_that_fails_brings_the_default_dtype_back() -> None:
    plain: Any = qfpass.compile(llama(), **SETTINGS)
    with default_dtype(torch.bfloat16):
        with pytest.raises(QFPassError):
            plain(torch.full((1, 4), 10**6))
        assert torch.get_default_dtype() is torch.bfloat16


def test_token_types_of_zeros_are_those_that_a_model_assumes() -> None:
    plain: Any = qfpass.compile(llama(), **SETTINGS)
    expected = plain(text()).logits
    torch.testing.assert_close(plain(text(), token_type_ids=torch.zeros_like(text())).logits, expected)
    with pytest.raises(InputError, match="token_type_ids="):
        plain(text(), token_type_ids=torch.ones_like(text()))


def test_ids_of_32_bits() -> None:
    plain: Any = qfpass.compile(llama(), **SETTINGS)
    torch.testing.assert_close(plain(text().int()).logits, plain(text()).logits)
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(plain.generate(text().int(), **settings).long(), plain.generate(text(), **settings))
