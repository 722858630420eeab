"""Drafts are read by graphs for few tokens, whose products read each weight once."""

from typing import Any

import pytest
import torch
from tiny import FAMILIES

import qfpass
from qfpass.kernels.cpu.tokens import MOST

SETTINGS: dict[str, Any] = {
    "budget": 48, "chunk": 24, "recent": 20, "score": "recency", "context_length": 256,
}  # fmt: skip
TAKE_BACK = MOST + 2


def reading_ends(tokens: int) -> list[int]:
    """Where calls end: a prompt past a full store, then every number of drafts, all taken."""
    ends = [60]
    for drafts in (2, 5, MOST, MOST + 1, 3, 1, MOST - 1):
        ends.append(ends[-1] + drafts)
    assert ends[-1] <= tokens
    return ends


@torch.no_grad()
def read(model: Any, ids: torch.Tensor) -> torch.Tensor:
    session, start, parts = model.session(take_back=TAKE_BACK), 0, []
    for end in reading_ends(ids.shape[1]):
        parts.append(model(input_ids=ids[:, start:end], past_key_values=session).logits)
        start = end
    return torch.cat(parts, 1)


@pytest.fixture(scope="module")
def compiled() -> Any:
    return qfpass.compile(FAMILIES["qwen2"](layers=2), **SETTINGS)


def test_drafts_equal_the_eager_backend(compiled: Any) -> None:
    if not compiled.qfpass_decoder.graphs.own_loops:
        pytest.skip("Inductor knows no vector instructions of this processor")
    ids = torch.randint(61, (1, 120), generator=torch.Generator().manual_seed(0))
    eager = qfpass.compile(FAMILIES["qwen2"](layers=2), backend="eager", **SETTINGS)
    torch.testing.assert_close(read(compiled, ids), read(eager, ids), atol=1e-5, rtol=1e-5)
    graphs = qfpass.report(compiled).graphs_compiled
    torch.testing.assert_close(read(compiled, ids), read(eager, ids), atol=1e-5, rtol=1e-5)
    assert qfpass.report(compiled).graphs_compiled == graphs
    few = compiled.qfpass_decoder.graphs._few
    assert few is not None and few.longest == MOST


def test_a_session_that_takes_nothing_back_makes_no_such_graphs() -> None:
    compiled = qfpass.compile(FAMILIES["llama"](layers=2), **SETTINGS)
    ids = torch.randint(61, (1, 12))
    with torch.no_grad():
        compiled(input_ids=ids, past_key_values=compiled.session())
    assert compiled.qfpass_decoder.graphs._few is None


@torch.no_grad()
def test_logits_that_are_asked_for_again_and_again(compiled: Any) -> None:
    """More of them than the graphs for few tokens take."""
    ids, again = torch.arange(1, 50)[None], torch.arange(2 * MOST) % 4
    session = compiled.session(take_back=TAKE_BACK)
    compiled(input_ids=ids[:, :45], past_key_values=session)
    logits = compiled(input_ids=ids[:, 45:], past_key_values=session, logits_to_keep=again).logits
    assert logits.shape[1] == 2 * MOST
    torch.testing.assert_close(logits[:, :4].repeat(1, MOST // 2, 1), logits)


@torch.no_grad()
def test_drafts_follow_changes_of_packed_weights() -> None:
    quantization = pytest.importorskip("torchao.quantization", reason="needs torchao")
    model = FAMILIES["llama"](layers=2, heads=4, kv_heads=2, head_dim=16)  # whole groups of 32
    quantization.quantize_(
        model, quantization.IntxWeightOnlyConfig(torch.int4, granularity=quantization.PerGroup(32))
    )
    compiled = qfpass.compile(model, **SETTINGS)
    eager = qfpass.compile(model, backend="eager", verify=False, **SETTINGS)
    ids = torch.arange(1, 60)[None]
    for _ in range(2):
        read = []
        for each in (compiled, eager):
            session = each.session(take_back=4)
            parts = ids.split([50, 3, 3, 3], dim=1)
            read.append(torch.cat([each(part, past_key_values=session).logits for part in parts[:3]], 1))
        torch.testing.assert_close(*read, atol=1e-4, rtol=1e-4)
        codes = model.lm_head.weight.qdata  # of which steps and drafts read a packed copy
        codes.copy_(codes.neg().clamp(-8, 7))
