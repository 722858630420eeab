"""Masks built in small decoders, and what they are learned to mean."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from decoders import causal, decoder, masked, within
from torch import nn

from qfpass.attention.find import find_attentions
from qfpass.attention.span import Span
from qfpass.capture.export import capture
from qfpass.errors import UnsupportedOpError

MaskOf = Callable[[torch.Tensor], torch.Tensor]


def distance(positions: torch.Tensor) -> torch.Tensor:
    """[B, 1, S, S]: how many tokens a key lies behind a query."""
    return positions[:, None, :, None] - positions[:, None, None, :]


def spans(model: torch.nn.Module, context_length: int = 64) -> list[Span]:
    return [a.span for a in find_attentions(capture(model), context_length)]


def test_is_causal_without_a_mask() -> None:
    assert spans(decoder(causal)) == [Span(), Span()]


@pytest.mark.parametrize(
    "mask_of",
    [
        lambda p: distance(p) >= 0,
        lambda p: torch.where(distance(p) >= 0, 0.0, float("-inf")),
        lambda p: torch.where(distance(p) >= 0, 0.0, torch.finfo(torch.float32).min),
        lambda p: torch.ones(p.shape[1], p.shape[1], dtype=torch.bool).tril()[None, None],
        lambda p: torch.full((p.shape[1], p.shape[1]), float("-inf")).triu(1)[None, None],
    ],
    ids=["bool", "-inf", "lowest number", "tril", "triu"],
)
def test_causal_masks(mask_of: MaskOf) -> None:
    assert spans(decoder(masked(mask_of), layers=1)) == [Span()]


@pytest.mark.parametrize("window", [1, 2, 5, 23, 24, 25, 40])
def test_windows(window: int) -> None:
    assert spans(decoder(within(window), layers=1)) == [Span(window)]


def test_additive_window() -> None:
    def mask_of(positions: torch.Tensor) -> torch.Tensor:
        gap = distance(positions)
        return torch.where((gap >= 0) & (gap <= 8), 0.0, float("-inf"))

    assert spans(decoder(masked(mask_of), layers=1)) == [Span(9)]


def test_layers_of_two_kinds_are_told_apart() -> None:
    model = decoder([within(8), within(8), causal])
    assert spans(model) == [Span(8), Span(8), Span()]


@pytest.mark.parametrize(
    ("mask_of", "reason"),
    [
        (lambda p: torch.where(distance(p) >= 0, -0.1 * distance(p) ** 2, float("-inf")), "isn't linear"),
        (lambda p: torch.zeros(p.shape[1], p.shape[1])[None, None], "neither causal"),
        (lambda p: distance(p) < 0, "hides every key"),
        (lambda p: (distance(p) >= 0) & (distance(p) % 2 == 0), "neither causal"),
        (lambda p: (distance(p) >= 0) | (p < 3)[:, None, None, :], "neither causal"),
    ],
    ids=["bias", "sees everything", "sees nothing", "every other key", "prefix"],
)
def test_other_masks_are_refused_by_site(mask_of: MaskOf, reason: str) -> None:
    with pytest.raises(UnsupportedOpError, match=reason) as error:
        spans(decoder(masked(mask_of), layers=1))
    assert "layers.0" in str(error.value)


class Tables(nn.Module):
    """Masks from what a module holds: a window as a scalar buffer, and a table [1, 1, 40, 40]."""

    window: torch.Tensor
    table: torch.Tensor

    def __init__(self, window: int) -> None:
        super().__init__()
        self.register_buffer("window", torch.tensor(window))
        gap = torch.arange(40)[:, None] - torch.arange(40)
        self.register_buffer("table", ((gap >= 0) & (gap < window))[None, None])

    def from_scalar(self, positions: torch.Tensor) -> torch.Tensor:
        gap = distance(positions)
        return (gap >= 0) & (gap < self.window)

    def from_table(self, positions: torch.Tensor) -> torch.Tensor:
        return self.table[:, :, : positions.shape[1], : positions.shape[1]]


class Holder(nn.Module):
    """A decoder beside the module that makes its masks."""

    def __init__(self, tables: Tables, mask_of: MaskOf) -> None:
        super().__init__()
        self.tables, self.decoder = tables, decoder(masked(mask_of), layers=1)
        self.eval()

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return self.decoder(input_ids, position_ids)


@pytest.mark.parametrize(("window", "span"), [(9, Span(9)), (30, Span(30)), (3000, Span(3000))])
def test_a_window_in_a_scalar_buffer(window: int, span: Span) -> None:
    tables = Tables(window)
    assert spans(Holder(tables, tables.from_scalar), context_length=4000) == [span]


@pytest.mark.parametrize(("window", "span"), [(9, Span(9)), (30, Span(30)), (100, Span())])
def test_a_table_of_the_mask(window: int, span: Span) -> None:
    tables = Tables(window)
    assert spans(Holder(tables, tables.from_table), context_length=40) == [span]


def test_a_window_that_no_number_spells_out() -> None:
    assert spans(
        decoder(masked(lambda p: (distance(p) >= 0) & (distance(p) * 0.25 < 50)), layers=1), 900
    ) == [Span(200)]


class ReadsText(nn.Module):
    """A decoder that hides a token of its own choice."""

    def __init__(self, hidden_token: int) -> None:
        super().__init__()
        self.hidden_token, self.decoder = hidden_token, decoder(causal, layers=1)
        self.eval()

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        shown = (distance(position_ids) >= 0) & (input_ids != self.hidden_token)[:, None, None, :]
        self.decoder.layers[0].attend = masked(lambda _: shown)
        return self.decoder(input_ids, position_ids)


@pytest.mark.parametrize("hidden_token", [0, 1, 37])
def test_a_mask_that_reads_the_text_is_refused(hidden_token: int) -> None:
    with pytest.raises(UnsupportedOpError, match=r"layers\.0.*depends on the tokens"):
        spans(ReadsText(hidden_token))


def test_a_mask_of_its_own_for_each_head_is_refused() -> None:
    def mask_of(positions: torch.Tensor) -> torch.Tensor:
        gap = distance(positions).expand(-1, 6, -1, -1)
        return (gap >= 0) & (gap < torch.tensor([8, 8, 8, 8, 8, 9])[:, None, None])

    with pytest.raises(UnsupportedOpError, match="different keys from different heads"):
        spans(decoder(masked(mask_of), layers=1))


def test_no_mask_and_not_causal_is_refused() -> None:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    with pytest.raises(UnsupportedOpError, match=r"layers\.0.*bidirectional"):
        spans(decoder(attend, layers=1))


def test_a_window_longer_than_can_be_evaluated_is_refused() -> None:
    with pytest.raises(UnsupportedOpError, match="pass a smaller context_length"):
        spans(decoder(within(20_000), layers=1), context_length=40_000)


def test_a_window_beyond_the_context_is_causal() -> None:
    assert spans(decoder(within(20_000), layers=1), context_length=64) == [Span()]


def test_gemma3_has_sliding_and_full_layers() -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=30,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        max_position_embeddings=256,
    )  # fmt: skip
    model = Gemma3ForCausalLM(config).eval()
    assert spans(model, context_length=256) == [Span(30), Span(), Span(30)]


@pytest.mark.parametrize("window", [None, 1, 4])
def test_allows_says_which_keys_are_seen(window: int | None) -> None:
    allowed = Span(window).allows(6, torch.device("cpu"))
    for query in range(6):
        first = 0 if window is None else max(0, query - window + 1)
        assert allowed[query].nonzero().flatten().tolist() == list(range(first, query + 1))
