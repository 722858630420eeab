"""What can be captured, what is refused, and what a captured graph computes."""

import pytest
import torch
from decoders import decoder, places, text
from torch import nn

from qfpass.capture.export import capture
from qfpass.errors import CaptureError


def test_graph_is_the_model_at_any_batch_and_length() -> None:
    model = decoder()
    captured = capture(model)
    for batch, length in ((1, 1), (1, 2), (2, 11), (3, 30)):
        ids = text(length, batch)
        with torch.no_grad():
            torch.testing.assert_close(
                captured.module(ids, places(ids)), model(ids, places(ids)), atol=1e-5, rtol=1e-5
            )


def test_parameters_are_shared() -> None:
    model = decoder()
    captured = capture(model)
    theirs = {p.data_ptr() for p in model.parameters()}
    assert {p.data_ptr() for p in captured.module.parameters()} == theirs
    assert (captured.device, captured.dtype) == (torch.device("cpu"), torch.float32)


def test_training_mode_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"training mode.*model\.eval\(\)"):
        capture(decoder().train())


def test_encoder_decoder_is_refused() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    with pytest.raises(CaptureError, match="T5ForConditionalGeneration is an encoder-decoder"):
        capture(T5ForConditionalGeneration(config).eval())


class OneHot(nn.Module):
    """A decoder without parameters."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return nn.functional.one_hot(input_ids, 50).float()


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(CaptureError, match="OneHot has no floating-point parameters"):
        capture(OneHot().eval())


class Classifier(nn.Module):
    """Gives one vector a text, not logits a token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 8)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.tokens(input_ids).mean(1)


def test_an_output_that_is_not_logits_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"not logits \[batch, tokens, vocabulary\]"):
        capture(Classifier().eval())


class ReadsItsData(nn.Module):
    """Chooses its path by what the ids are, which no graph can hold."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 8)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(input_ids)
        return hidden * 2 if int(input_ids.sum()) > 3 else hidden


def test_a_model_that_cannot_be_exported_is_refused() -> None:
    with pytest.raises(CaptureError, match="ReadsItsData can't be held in one graph") as error:
        capture(ReadsItsData().eval())
    assert error.value.__cause__ is not None


class OneLength(nn.Module):
    """Loops over its tokens in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 8)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.tokens(input_ids[:, i]) for i in range(input_ids.shape[1])], dim=1)


def test_a_model_of_one_length_is_refused() -> None:
    with pytest.raises(CaptureError, match="OneLength works for one length only"):
        capture(OneLength().eval())


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_models_own_attention_is_given_back(implementation: str) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, attn_implementation=implementation,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    captured = capture(model)
    assert model.config._attn_implementation == implementation
    assert any("scaled_dot_product" in str(n.target) for n in captured.module.graph.nodes)
