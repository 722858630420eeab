"""The proof that runs before compile returns: it must catch what the rewriting can't keep."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from decoders import HEAD_DIM, Decoder, causal, decoder, places, text
from tiny import FAMILIES, FORMS
from torch import nn

import qfpass
from qfpass.errors import VerificationError
from qfpass.graph.attention import Attention, find_attentions
from qfpass.graph.capture import Captured, capture
from qfpass.proof_text import ROUNDS, original_logits, with_likely_end
from qfpass.runtime.uncompressed import Uncompressed
from qfpass.verify import verify


def captured_of(model: nn.Module) -> tuple[Captured, list[Attention]]:
    captured = capture(model)
    return captured, find_attentions(captured, 64)


class Recurrent(Decoder):
    """Adds the average of all earlier embeddings: a state that isn't attention."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        embedded = self.tokens(input_ids)
        count = torch.arange(1, input_ids.shape[1] + 1)[None, :, None]
        hidden = embedded + embedded.cumsum(1) / count
        for layer in self.layers:
            hidden = layer(hidden, position_ids)
        return self.head(hidden)


class Convolutional(Decoder):
    """Mixes in the token before, after the last attention."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(input_ids) + self.places(position_ids)
        for layer in self.layers:
            hidden = layer(hidden, position_ids)
        return self.head(hidden + F.pad(hidden, (0, 0, 1, 0))[:, :-1])


class CountsFromTheEnd(Decoder):
    """Places tokens by how many of the call follow them."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        length = input_ids.shape[1]
        return super().forward(input_ids, length - 1 - torch.arange(length)[None])


class CountsBackwards(Decoder):
    """Places the tokens of a call in reverse."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(input_ids, torch.arange(input_ids.shape[1]).flip(0)[None])


class Views(Decoder):
    """Merges the heads by a view, which needs the memory layout of PyTorch's own attention output."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(input_ids) + self.places(position_ids)
        for layer in self.layers:
            normed = layer.norm(hidden)
            query, key, value = (
                part(normed).unflatten(-1, (-1, HEAD_DIM)).transpose(1, 2)
                for part in (layer.query, layer.key, layer.value)
            )
            seen = causal(query, key, value, position_ids).transpose(1, 2)
            hidden = hidden + layer.out(seen.view(*input_ids.shape, -1))
        return self.head(hidden)


def test_a_view_of_the_output_is_no_obstacle() -> None:
    model = Views().eval()
    verify(model, *captured_of(model))


def test_a_good_decoder_passes() -> None:
    model = decoder()
    verify(model, *captured_of(model))


@pytest.mark.parametrize("kind", [Recurrent, Convolutional])
def test_state_that_is_not_attention_is_told(kind: type[Decoder]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    with pytest.raises(VerificationError, match="from token to token outside attention") as error:
        qfpass.compile(model, context_length=64, backend="eager")
    assert str(error.value).startswith(f"{kind.__name__} can't be compiled")


def test_places_that_a_session_cannot_follow_are_caught() -> None:
    torch.manual_seed(0)
    model = CountsBackwards().eval()
    with pytest.raises(VerificationError, match="read in parts") as error:
        qfpass.compile(model, context_length=64, backend="eager")
    message = str(error.value)
    assert "differs from CountsBackwards" in message
    assert "by something else than their positions" in message
    assert "verify=False" in message


def test_a_graph_that_only_starts_texts_is_caught() -> None:
    torch.manual_seed(0)
    model = CountsFromTheEnd().eval()
    with pytest.raises(VerificationError, match="fails outside attention"):
        qfpass.compile(model, context_length=64, backend="eager")


@pytest.mark.parametrize(("wrong", "first"), [((0, 1, 2), 0), ((1, 2), 1), ((2,), 2)])
def test_a_wrong_scale_is_caught_and_the_first_site_named(
    wrong: Sequence[int], first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def misread(captured: Captured, context_length: int | None) -> list[Attention]:
        right = find_attentions(captured, context_length)
        return [replace(a, scale=a.scale * 3) if a.index in wrong else a for a in right]

    monkeypatch.setattr(import_module("qfpass.proven"), "find_attentions", misread)
    with pytest.raises(VerificationError, match="read at once") as error:
        qfpass.compile(_sharp(), context_length=64, backend="eager")
    assert f"first attention that differs is layers.{first}" in str(error.value)
    assert f"(site {first})" in str(error.value)


def _sharp() -> Decoder:
    """Three layers whose attention is far from uniform, so that its scale matters."""
    model = decoder(causal, layers=3)
    with torch.no_grad():
        for layer in model.layers:
            layer.query.weight.mul_(4)
    return model


def test_swapped_keys_are_caught() -> None:
    model = _sharp()
    captured, attentions = captured_of(model)
    attentions[1] = replace(attentions[1], key=attentions[1].value)
    with pytest.raises(VerificationError, match=r"layers\.1"):
        verify(model, captured, attentions)


def test_not_a_number_is_not_taken_for_equal() -> None:
    model = decoder()
    with torch.no_grad():
        model.head.weight[0].fill_(float("nan"))
    with pytest.raises(VerificationError, match="nan"):
        verify(model, *captured_of(model))


def test_verify_false_compiles_all_the_same() -> None:
    torch.manual_seed(0)
    model = CountsFromTheEnd().eval()
    compiled = qfpass.compile(model, context_length=64, chunk=16, backend="eager", verify=False)
    ids = text(10)
    with torch.no_grad():
        wanted = model(ids, places(ids))
    torch.testing.assert_close(compiled(ids), wanted, atol=1e-4, rtol=1e-4)


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
    return replace(first, scale=first.scale * 1.02)


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


def test_the_proof_goes_on_with_what_the_model_finds_likely() -> None:
    model, first = FAMILIES["llama"](), 10
    ids = text(20)
    likely = with_likely_end(model, ids, first)
    assert torch.equal(likely[:, :first], ids[:, :first])
    for end in range(first, first + ROUNDS):  # each round writes one more token for good
        assert likely[0, end] == original_logits(model, likely[:, :end])[0, -1].argmax()

    def chance(of: torch.Tensor) -> torch.Tensor:
        each = original_logits(model, of)[:, first - 1 : -1].log_softmax(-1)
        return each.gather(2, of[:, first:, None]).mean()

    assert chance(likely) > chance(ids) + 1


def test_a_model_that_is_all_rounding_cannot_be_proven() -> None:
    model = loud(torch.bfloat16, layers=8)
    with pytest.raises(VerificationError, match="off what it is in float32"):
        verify(model, *captured_of(model))
