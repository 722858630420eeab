"""Past the context length: refused, continued, or moved back into range, each against eager attention."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from decoders import decoder
from rows import padded, text
from tiny import FAMILIES, PlainDecoder, PlainLayer, WindowDecoder, rotate
from torch import nn

import qfpass
from qfpass.errors import ConfigError, InputError, QFPassError, UnsupportedOpError

CONTEXT, SLOTS, SINKS, RECENT = 40, 16, 3, 4
SETTINGS: dict[str, Any] = {
    "budget": SLOTS, "sinks": SINKS, "recent": RECENT, "chunk": 8, "backend": "eager", "score": "knorm",
}  # fmt: skip


def compiled(model: nn.Module, overflow: str, **settings: Any) -> nn.Module:
    return qfpass.compile(model, overflow=overflow, **(SETTINGS | {"context_length": CONTEXT} | settings))


class Kept:
    """One head's keys, not turned, with values and positions: the slow way, token by token."""

    def __init__(self) -> None:
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []
        self.positions: list[int] = []

    def add(self, key: torch.Tensor, value: torch.Tensor, position: int) -> None:
        if len(self.keys) == SLOTS:
            free = [
                i for i, p in enumerate(self.positions) if p >= SINKS and p <= position - RECENT
            ]  # fmt: skip
            worst = max(free, key=lambda i: float(self.keys[i].norm()))
            for held in (self.keys, self.values, self.positions):
                del held[worst]
        self.keys.append(key)
        self.values.append(value)
        self.positions.append(position)

    def close_up(self) -> None:
        order = sorted(self.positions)
        self.positions = [p if p < SINKS else order.index(p) for p in self.positions]

    def attend(self, query: torch.Tensor) -> torch.Tensor:
        """query [group, D] -> [group, D]."""
        keys = rotate(torch.stack(self.keys)[None, None], torch.tensor([self.positions]))[0, 0]
        return (query @ keys.T * query.shape[-1] ** -0.5).softmax(-1) @ torch.stack(self.values)


@torch.no_grad()
def written_out(model: PlainDecoder, ids: torch.Tensor) -> torch.Tensor:
    """Logits [S, V] of ids [1, S], read token by token; positions start anew at `SLOTS` when they run out."""
    stores = [[Kept() for _ in range(2)] for _ in model.layers]
    position, logits = 0, []
    for token in ids[0]:
        if position == CONTEXT:
            for store in (s for layer in stores for s in layer):
                store.close_up()
            position = SLOTS
        hidden = model.tokens(token)[None, None]
        for layer, store in zip(model.layers, stores, strict=True):
            assert isinstance(layer, PlainLayer)
            normed = layer.before_attention(hidden)[0, 0]
            query, key, value = (part(normed).view(-1, 8) for part in (layer.query, layer.key, layer.value))
            query = rotate(query[None, :, None], torch.tensor([[position]]))[0, :, 0]
            for head, kept in enumerate(store):
                kept.add(key[head], value[head], position)
            out = [kept.attend(query[2 * head : 2 * head + 2]) for head, kept in enumerate(store)]
            hidden = layer.after_attention(hidden, torch.cat(out)[None, :, None])
        logits.append(model.head(model.norm(hidden))[0, 0])
        position += 1
    return torch.stack(logits)


def test_moved_keys_are_what_they_would_be_at_their_new_positions() -> None:
    """Heads keep different keys, so each has positions of its own; moved four times over 130 tokens."""
    model = PlainDecoder(vocab=150)
    bounded = compiled(model, "rerotate")
    # No token twice: equal keys would tie.
    ids = torch.randperm(150, generator=torch.Generator().manual_seed(0))[None, :130]
    session = bounded.session()
    steps = [bounded(ids[:, i : i + 1], past_key_values=session)[0, 0] for i in range(130)]
    torch.testing.assert_close(torch.stack(steps), written_out(model, ids), atol=1e-4, rtol=1e-4)
    assert session.tokens_seen == 130
    bounded(ids[:, :CONTEXT], past_key_values=(before := bounded.session()))
    assert not torch.equal(*before.positions(1)[0].sort(-1).values)
    assert max(session.positions(layer).max() for layer in range(2)) < CONTEXT


@pytest.mark.parametrize("overflow", ["continue", "rerotate"])
def test_a_window_stays_exact_however_long_the_text(overflow: str) -> None:
    """Longer than a bounded layer's slots would be, so that a ring's positions decide where it goes on."""
    model = WindowDecoder(window=21)
    bounded, ids = compiled(model, overflow), text(200)
    session = bounded.session()
    with torch.no_grad():
        wanted = model(ids, torch.arange(200)[None])
    cuts = (30, 1, 1, 8, 1, 1, 1, 60, 1, 96)
    made = [bounded(piece, past_key_values=session) for piece in ids.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(made, dim=1), wanted, atol=1e-4, rtol=1e-4)


def test_continued_positions_are_those_of_a_longer_context() -> None:
    model, ids = FAMILIES["gemma3"](window=7), text(150)
    short, long = compiled(model, "continue"), compiled(model, "error", context_length=200)
    sessions = short.session(), long.session()
    for piece in ids.split((38, 5, 1, 1, 100, 5), dim=1):
        made = short(piece, past_key_values=sessions[0]).logits
        torch.testing.assert_close(made, long(piece, past_key_values=sessions[1]).logits)
    assert sessions[0].positions(1).max() == 149


def test_rows_move_when_their_own_positions_run_out() -> None:
    model = compiled(FAMILIES["gemma3"](window=7), "rerotate", score="recency")
    session, alone = model.session(), [model.session() for _ in range(3)]
    turns = [(39, 5, 20), (1, 1, 1), (0, 1, 1), (1, 30, 4), (25, 3, 0), (1, 1, 1), (1, 0, 1)]
    for turn, lengths in enumerate(turns):
        rows = [text(n, seed=10 * turn + i) for i, n in enumerate(lengths)]
        logits = model(**padded(rows, "right"), past_key_values=session, logits_to_keep=1).logits
        for i, row in enumerate(rows):
            if row.shape[1]:
                wanted = model(row, past_key_values=alone[i], logits_to_keep=1).logits
                torch.testing.assert_close(logits[i : i + 1], wanted, atol=1e-4, rtol=1e-4)
    assert [row.position for row in session.rows] == [own.rows[0].position for own in alone]
    assert {row.position < row.tokens for row in session.rows} == {True, False}


def test_the_text_goes_on_after_a_save_and_a_smaller_budget(tmp_path: Any) -> None:
    model = compiled(PlainDecoder(), "rerotate")
    session, ids = model.session(budget=10), text(90)
    model(ids[:, :60], past_key_values=session)
    session.save(tmp_path / "moved")
    loaded, fork = model.session(budget=10).load(tmp_path / "moved"), session.fork()
    wanted = model(ids[:, 60:], past_key_values=session)
    for each in (loaded, fork):
        assert torch.equal(model(ids[:, 60:], past_key_values=each), wanted)
    assert (session.tokens_seen, int((session.positions(0) >= 0).sum(-1).max())) == (90, 10)


def test_an_error_by_default() -> None:
    model = compiled(PlainDecoder(), "error")
    session = model.session()
    model(text(CONTEXT), past_key_values=session)
    with pytest.raises(InputError, match=r"exceed the context length of 40.*another overflow"):
        model(text(1), past_key_values=session)


class Placed(PlainDecoder):
    """Adds a wave of the position to every embedding, so that a key isn't turned alone."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        wave = (position_ids[..., None].float() / 7).sin()
        hidden = self.tokens(input_ids) + wave
        for layer in self.layers:
            query, key, value = layer.heads_of(hidden, position_ids)
            hidden = layer.after_attention(hidden, self.attend(query, key, value, position_ids))
        return self.head(self.norm(hidden))


class Twisted(PlainDecoder):
    """Turns its keys by the square of their positions."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return super().forward(input_ids, position_ids * position_ids)


TABLE = (UnsupportedOpError, "looked up in a table")
REFUSED: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Any], type[QFPassError], str]] = {
    "no such policy": (PlainDecoder, "wrap", {}, ConfigError, "overflow must be one of"),
    "a layer that keeps every key": (PlainDecoder, "continue", {"skip_layers": (1,)}, ConfigError, "bounded"),
    "every key": (PlainDecoder, "rerotate", {"budget": None}, ConfigError, "every layer bounded"),
    "no room": (PlainDecoder, "rerotate", {"context_length": 20}, ConfigError, "no room for a chunk"),
    "learned positions continued": (decoder, "continue", {}, *TABLE),
    "learned positions moved": (FAMILIES["gpt2"], "rerotate", {}, *TABLE),
    "a table of angles": (FAMILIES["gptj"], "rerotate", {}, *TABLE),
    "positions elsewhere": (Placed, "rerotate", {}, UnsupportedOpError, "positions enter there too"),
    "no rotation": (Twisted, "rerotate", {}, UnsupportedOpError, "moving a key by .* is off"),
}


@pytest.mark.parametrize(("build", "overflow", "settings", "error", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_can_not_be_is_refused(
    build: Callable[[], nn.Module],
    overflow: str,
    settings: dict[str, Any],
    error: type[QFPassError],
    reason: str,
) -> None:
    with pytest.raises(error, match=reason):
        compiled(build(), overflow, **settings)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "phi3", "olmo2", "gpt_neox"])
def test_rotary_is_found_in(family: str) -> None:
    """Whole or partial, before or after a norm, from one projection or three."""
    compiled(FAMILIES[family](), "rerotate", verify=False)
