"""The proof that runs before compile returns: it must catch what the rewriting can't keep."""

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from decoders import HEAD_DIM, Decoder, causal, decoder, places, text
from torch import nn

import qfpass
from qfpass.attention.find import Attention, find_attentions
from qfpass.capture.export import capture
from qfpass.errors import VerificationError
from qfpass.graph.captured import Captured
from qfpass.proof.verify import verify


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
    with pytest.raises(VerificationError, match="by something other than plain attention") as error:
        qfpass.compile(model, context_length=64, backend="eager")
    assert str(error.value).startswith(f"{kind.__name__} can't be compiled")


def test_places_that_a_session_cannot_follow_are_caught() -> None:
    torch.manual_seed(0)
    model = CountsBackwards().eval()
    with pytest.raises(VerificationError, match="read in parts") as error:
        qfpass.compile(model, context_length=64, backend="eager")
    message = str(error.value)
    assert "differs from CountsBackwards" in message
    assert "by something other than their positions" in message
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
        return [
            replace(a, form=replace(a.form, scale=a.form.scale * 3)) if a.index in wrong else a for a in right
        ]

    monkeypatch.setattr(import_module("qfpass.proof.prove"), "find_attentions", misread)
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
