"""Forwards that depend on how long the whole text is: a session that reads in parts is right, or refused."""

import inspect
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from decoders import POSITIONS, Decoder, causal, masked, text
from transformers import Phi3Config, Phi3ForCausalLM
from transformers.modeling_rope_utils import dynamic_rope_update

import qfpass
from qfpass.errors import CaptureError, QFPassError, UnsupportedOpError
from qfpass.proof import length_dependence

BORDER, TOKENS, CONTEXT = 40, 60, 64
Change = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of hidden [B, S, E] at positions [B, S]


class Changed(Decoder):
    """Changes its hidden values by something of the test's choice."""

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """See the class."""
        hidden = self.change(self.tokens(input_ids) + self.places(position_ids), position_ids)
        for layer in self.layers:
            hidden = layer(hidden, position_ids)
        return self.head(self.norm(hidden))


def by_largest(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return hidden * torch.where(positions.max() >= BORDER, 2.0, 1.0)


def by_row(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return hidden * (1 + 0.1 * positions.amax(dim=-1, keepdim=True)[..., None])


def by_last(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return hidden * (positions[:, -1:] + 1).clamp(min=BORDER).log()[..., None]


def by_number(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return hidden * (torch.full((), positions.shape[1]) > BORDER).float().add(1)


def by_count(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return hidden / torch.ones_like(positions).sum(1).clamp(min=BORDER)[:, None, None]


def by_tensor_of_length(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return hidden * torch.where(torch.tensor(positions.shape[1]) > BORDER, 2.0, 1.0)


CARRIED: Sequence[Change] = (by_largest, by_row, by_last, by_number, by_count, by_tensor_of_length)


def branch(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return hidden * 2 if positions.shape[1] > BORDER else hidden


def branch_on_a_square(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return hidden * 2 if positions.shape[1] ** 2 > BORDER**2 else hidden


def one_length_alone(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return hidden * 2 if positions.shape[1] == BORDER else hidden


def every_eighth_length(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return hidden * 2 if positions.shape[1] % 8 == 0 else hidden


def below_a_length(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return hidden * 2 if positions.shape[1] < 7 else hidden


def larger_of_two(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return hidden * torch.sym_max(positions.shape[1], BORDER)


def mean_position(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return hidden * torch.where(positions.float().mean() > BORDER / 2, 2.0, 1.0)


def middle_position(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return hidden * torch.where(positions[:, positions.shape[1] // 2] > 25, 2.0, 1.0)[:, None, None]


def places_turned_round(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return hidden + 0.1 * torch.where(positions.max() > BORDER, positions.flip(-1), positions)[..., None]


BRANCHES: Sequence[Change] = (branch, branch_on_a_square, one_length_alone)
REFUSED: Sequence[Change] = (larger_of_two, mean_position, middle_position, places_turned_round)


def changed(change: Change) -> Changed:
    torch.manual_seed(0)
    return Changed(change).eval()


def compiled(model: Decoder, context_length: int = CONTEXT, backend: str = "eager") -> Any:
    return qfpass.compile(model, ratio=1, context_length=context_length, chunk=9, backend=backend)


@torch.no_grad()
def check_read_at_once(model: Decoder, lengths: Sequence[int], backend: str = "eager") -> None:
    ours = compiled(model, backend=backend)
    for length in lengths:
        ids = text(length, batch=2)
        positions = torch.arange(length).expand(2, -1)
        torch.testing.assert_close(ours(ids), model(ids, positions), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("change", CARRIED)
def test_a_text_read_at_once_has_its_own_length(change: Change) -> None:
    check_read_at_once(changed(change), (7, BORDER - 1, BORDER, BORDER + 1, TOKENS))


@pytest.mark.skipif(
    "torch.where" not in inspect.getsource(dynamic_rope_update),
    reason="this transformers branches on positions in Python, which no graph can hold: it is refused",
)
@torch.no_grad()
def test_long_rope_turns_keys_by_the_length_of_the_text() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": BORDER}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [1.0, 3.0, 8.0, 16.0]}
    config = Phi3Config(
        vocab_size=53, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, original_max_position_embeddings=BORDER,
        initializer_range=0.2, pad_token_id=None, bos_token_id=None, eos_token_id=None, rope_parameters=rope,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Phi3ForCausalLM(config).eval()
    ours: Any = qfpass.compile(model, ratio=1, context_length=CONTEXT, chunk=9, backend="eager")
    for length in (BORDER - 1, BORDER, BORDER + 1, TOKENS):
        ids = text(length, batch=2)
        expected = model(ids, use_cache=False).logits
        torch.testing.assert_close(ours(ids).logits, expected, atol=1e-4, rtol=1e-4)


def test_inductor_takes_the_length_too() -> None:
    check_read_at_once(changed(by_largest), (BORDER, TOKENS), "inductor")


@torch.no_grad()
def test_a_text_that_grows_has_the_length_of_each_call() -> None:
    model = changed(by_largest)
    ours, ids = compiled(model), text(TOKENS)
    session = ours.session()
    for a, b in pairwise((0, 20, 39, TOKENS)):
        ours(ids[:, a:b], cache=session)
    # What was read before the border was read by a shorter text, as transformers' own caches keep it.
    again = ours.session()
    ours(ids, cache=again)
    assert not torch.equal(session.stores[0][0], again.stores[0][0])


@pytest.mark.parametrize("change", BRANCHES)
def test_a_branch_on_the_length_is_refused_and_named(change: Change) -> None:
    with pytest.raises(
        CaptureError, match=r"texts of \d+ tokens, but not of \d+.*context_length=\d+ at most"
    ):
        compiled(changed(change))


def no_change_after_all(hidden: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    return hidden + 0 if positions.shape[1] % 8 == 0 or positions.shape[1] < 5 else hidden


def test_branches_that_give_the_same_are_taken() -> None:
    check_read_at_once(changed(no_change_after_all), (3, 8, 9, TOKENS))


@pytest.mark.parametrize(("change", "tokens"), [(below_a_length, 2), (every_eighth_length, 8)])
def test_a_branch_for_short_texts_is_refused(change: Change, tokens: int) -> None:
    with pytest.raises(CaptureError, match=f"a text of {tokens} tokens"):
        compiled(changed(change))


@pytest.mark.parametrize("change", REFUSED)
def test_what_no_input_can_tell_is_refused_and_named(change: Change) -> None:
    with pytest.raises(UnsupportedOpError, match="depends on how long the whole text is"):
        compiled(changed(change))


@pytest.mark.parametrize("change", [branch, branch_on_a_square, larger_of_two])
def test_texts_below_the_border_work(change: Change) -> None:
    with pytest.raises(QFPassError) as refusal:
        compiled(changed(change))
    longest = int(str(refusal.value).partition("context_length=")[2].partition(" ")[0])
    assert BORDER - 1 <= longest <= BORDER + 1
    model, ids = changed(change), text(longest, batch=2)
    with torch.no_grad():
        expected = model(ids, torch.arange(longest).expand(2, -1))
    actual = compiled(model, longest)(ids)
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_a_context_past_a_table_is_refused_and_named() -> None:
    with pytest.raises(
        UnsupportedOpError, match=f"places: from {POSITIONS + 1} tokens on.*has {POSITIONS} rows"
    ):
        compiled(changed(by_largest), POSITIONS + 1)


def test_what_weights_alone_make_is_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """It depends on no length and may be large: a dequantised weight."""
    compared = list[Any]()
    agree = length_dependence._agree

    def noted(expected: Any, actual: Any) -> bool:
        compared.append(expected)
        return agree(expected, actual)

    monkeypatch.setattr(length_dependence, "_agree", noted)
    codes = torch.eye(changed(by_last).tokens.embedding_dim, dtype=torch.int8)
    check_read_at_once(changed(lambda hidden, places: by_last(hidden, places) @ (0.5 * codes)), (TOKENS,))
    shapes = {value.shape for value in compared if isinstance(value, torch.Tensor)}
    assert shapes and codes.shape not in shapes


def test_another_window_for_long_texts_is_refused() -> None:
    def mask_of(positions: torch.Tensor) -> torch.Tensor:
        distance = positions[:, None, :, None] - positions[:, None, None, :]
        window = torch.where(positions.max() >= BORDER, 5, 30)
        return (distance >= 0) & (distance < window)

    torch.manual_seed(0)
    with pytest.raises(UnsupportedOpError, match="neither causal nor"):
        compiled(Decoder(masked(mask_of)).eval())


def test_other_logits_of_attention_for_long_texts_are_refused_or_right() -> None:
    def attend(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        factor = torch.where(positions.max() >= BORDER, math.log(BORDER), 1.0)
        return causal(query * factor, key, value, positions)

    torch.manual_seed(0)
    check_read_at_once(Decoder(attend).eval(), (BORDER, BORDER + 1, TOKENS))
