"""What the proof makes of rounding: small errors are found in every dtype, and nothing right is refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from decoders import Decoder
from tiny import FAMILIES, FORMS
from torch import nn

from qfpass.attention.find import Attention, find_attentions
from qfpass.capture.export import capture
from qfpass.errors import VerificationError
from qfpass.graph.captured import Captured
from qfpass.proof.verify import verify
from qfpass.rewriting.uncompressed import Uncompressed


def captured_of(model: nn.Module) -> tuple[Captured, list[Attention]]:
    captured = capture(model)
    return captured, find_attentions(captured, 64)


def loud(dtype: torch.dtype, layers: int = 4) -> Any:
    """A Gemma 3 with large activations: of 4 layers bfloat16 is 0.23 of its largest logit off."""
    torch.manual_seed(0)
    model = FAMILIES["gemma3"](layers=layers, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.rand_like(parameter) * layers)
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_the_models_own_is_no_error(dtype: torch.dtype) -> None:
    model = loud(dtype)
    verify(model, *captured_of(model))


def _with_a_scale_off_by_two_percent(first: Attention) -> Attention:
    return replace(first, form=replace(first.form, scale=first.form.scale * 1.02))


def _with_a_window_off_by_one(first: Attention) -> Attention:
    assert first.span.window is not None
    return replace(first, span=replace(first.span, window=first.span.window - 1))


def _without_its_sink(first: Attention) -> Attention:
    assert first.sink is not None
    return replace(first, sink=None)


FAULTS: dict[str, tuple[str, Callable[[Attention], Attention]]] = {
    "scale": ("gemma3", _with_a_scale_off_by_two_percent),
    "window": ("gemma3", _with_a_window_off_by_one),
    "sink": ("gpt_oss", _without_its_sink),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", FAULTS)
def test_small_errors_are_found_in_every_dtype(dtype: torch.dtype, fault: str) -> None:
    family, planted = FAULTS[fault]
    is_loud = dtype is torch.bfloat16 and family == "gemma3"
    model = loud(dtype) if is_loud else (FAMILIES | FORMS)[family](layers=2, dtype=dtype)
    captured, attentions = captured_of(model)
    verify(model, captured, attentions)
    attentions[0] = planted(attentions[0])
    message = "in float32" if dtype is not torch.float32 else "differs"
    with pytest.raises(VerificationError, match=f"{message}.*first attention that differs is model.layers.0"):
        verify(model, captured, attentions)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_position_off_by_one_is_found(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    model = FAMILIES["llama"](dtype=dtype)
    captured, attentions = captured_of(model)
    inputs = Uncompressed.inputs

    def shifted(self: Uncompressed, ids: torch.Tensor, call_end: int = 0) -> Any:
        read, position, *rest = inputs(self, ids, call_end)
        assert position is not None
        return read, position + (position >= 12), *rest

    monkeypatch.setattr(Uncompressed, "inputs", shifted)
    with pytest.raises(VerificationError, match="differs from LlamaForCausalLM"):
        verify(model, captured, attentions)


class Sensitive(Decoder):
    """Amplifies the rounding of its attentions, as activations that are quantised on the fly do."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(input_ids) + self.places(position_ids)
        for layer in self.layers:
            hidden = layer(hidden, position_ids)
        return self.head(self.norm(hidden + 0.5 * (hidden * 1e6).sin()))


def test_a_model_that_amplifies_rounding_is_told_from_a_wrong_graph() -> None:
    torch.manual_seed(0)
    model = Sensitive(layers=2).eval()
    with pytest.raises(VerificationError, match=r"the original itself moves by .* it amplifies rounding"):
        verify(model, *captured_of(model))


def test_a_model_that_is_all_rounding_cannot_be_proven() -> None:
    model = loud(torch.bfloat16, layers=8)
    with pytest.raises(VerificationError, match="away from those in float32"):
        verify(model, *captured_of(model))
