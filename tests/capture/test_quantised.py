"""Models with torchao's weights: equal to the original, their layers found alike and compiled once."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny import FAMILIES
from torch import nn

import qfpass
from qfpass.proof.verify import original_logits

quantization = pytest.importorskip("torchao.quantization", reason="needs torchao: pip install torchao")

TOKENS, CONTEXT = 24, 64
CONFIGS = {
    "int8": quantization.Int8WeightOnlyConfig,
    "float8": quantization.Float8WeightOnlyConfig,
    "int4 in groups": lambda: quantization.IntxWeightOnlyConfig(
        torch.int4, granularity=quantization.PerGroup(32)
    ),
}


def quantised(config: Callable[[], Any]) -> nn.Module:
    """A tiny Llama with quantised linears."""
    model = FAMILIES["llama"](layers=3, heads=4, kv_heads=2, head_dim=16)
    quantization.quantize_(model, config())
    return model


def in_parts(compiled: Any, ids: torch.Tensor) -> torch.Tensor:
    """The logits of ids [B, S], read in calls of several sizes."""
    session = compiled.session()
    cuts = (0, 9, 10, 11, TOKENS)
    parts = [compiled(ids[:, a:b], past_key_values=session).logits for a, b in pairwise(cuts)]
    return torch.cat(parts, dim=1)


def some_ids() -> torch.Tensor:
    return torch.randint(61, (1, TOKENS), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CONFIGS)
def test_equal_to_the_original_with_layers_of_one_kind(name: str) -> None:
    model = quantised(CONFIGS[name])
    compiled = qfpass.compile(model, context_length=CONTEXT, backend="eager")
    expected = original_logits(model, some_ids())
    torch.testing.assert_close(in_parts(compiled, some_ids()), expected, atol=2e-3, rtol=1e-3)
    decoder = compiled.qfpass_decoder
    assert decoder.graphs.kinds == 1 and decoder.graphs.head is not None
    assert "trace_layers_once" not in decoder.unused_optimisations


def test_a_step_reads_eight_bits_as_they_lie() -> None:
    """Inductor, layer by layer; also past full stores."""
    model = quantised(CONFIGS["int8"])
    settings: dict[str, Any] = {"budget": 16, "context_length": CONTEXT, "score": "knorm"}
    compiled = qfpass.compile(model, **settings)
    eager = qfpass.compile(model, backend="eager", **settings)
    expected = in_parts(eager, some_ids())
    torch.testing.assert_close(in_parts(compiled, some_ids()), expected, atol=1e-3, rtol=1e-3)
    assert compiled.qfpass_decoder.graphs.why_not_piecewise is None
