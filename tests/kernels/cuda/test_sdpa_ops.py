"""The CUDA operators in compiled graphs: a stand-in on a processor, themselves where there is a GPU."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from often import often
from test_families import BUILDERS, close, logits_of, text

import qfpass
from qfpass.kernels import reference
from qfpass.kernels.cuda import sdpa_ops
from qfpass.kernels.kernel import Kernel
from qfpass.rewriting import uncompressed

OPERATORS = {"flash": sdpa_ops.FLASH, "efficient": sdpa_ops.EFFICIENT}
FORMS: list[dict[str, Any]] = [
    {},
    {"causal": True},
    {"window": 4},
    {"bias": torch.zeros(1, 6, 7, 7)},
]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


def _stand_in(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    scale: float,
    causal: bool,
    window: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = reference.attend(query, key, value, scale=scale, causal=causal, window=window, bias=bias)
    return out.transpose(1, 2).contiguous().transpose(1, 2), lse


for operator in OPERATORS.values():
    operator.register_kernel("cpu")(_stand_in)


def check(name: str, form: dict[str, Any], device: str, dtype: torch.dtype) -> None:
    query = torch.randn(2, 7, 6, 64, device=device, dtype=dtype).transpose(1, 2)
    store = torch.randn(2, 2, 20, 64, device=device, dtype=dtype)[:, :, :7]
    given = {"bias": None, "causal": False, "window": None} | form
    if given["bias"] is not None:
        given["bias"] = given["bias"].to(device, dtype)
    arguments = (query, store, store, given["bias"], 0.3, given["causal"], given["window"])
    torch.library.opcheck(OPERATORS[name], arguments)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "".join(form) or "plain")
@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_is_what_its_fake_says(name: str, form: dict[str, Any]) -> None:
    check(name, form, "cpu", torch.float32)


@pytest.mark.cuda
@needs_gpu
@pytest.mark.parametrize("form", FORMS, ids=lambda form: "".join(form) or "plain")
@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_is_what_its_fake_says_on_a_gpu(name: str, form: dict[str, Any]) -> None:
    check(name, form, "cuda", torch.bfloat16)


@pytest.mark.parametrize("family", often(["gpt2"], ["gpt2", "gemma3"]))
@torch.no_grad()
def test_inductor_calls_it_for_numbers_of_keys_known_only_then(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads of their own, and a window's keys put together anew: Inductor has no order for their strides."""
    settings: dict[str, Any] = {
        "budget": 24,
        "context_length": 64,
        "chunk": 9,
        "recent": 6,
        "score": "recency",
    }
    model = BUILDERS[family](layers=4)
    eager = qfpass.compile(model, backend="eager", verify=False, **settings)
    kernel = Kernel("stand-in", sdpa_ops.attend_efficient)
    monkeypatch.setattr(uncompressed, "choose_kernel", lambda *_, **__: kernel)
    lowered = qfpass.compile(model, verify=False, **settings)
    ids = text(60)

    def read(model: Any) -> torch.Tensor:
        session = model.session()
        calls = [model(ids[:, a:b], past_key_values=session) for a, b in pairwise([0, 9, 20, 21, 22, 40, 60])]
        return torch.cat([logits_of(call) for call in calls], dim=1)

    close(read(lowered), read(eager))
