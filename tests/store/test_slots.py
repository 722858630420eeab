"""The bounded store against re-ranking every token seen, by brute force."""

import torch
from evicting import replace_lowest
from hypothesis import given, settings
from hypothesis import strategies as st

from qfpass.store.kv_form import KVForm
from qfpass.store.slots import Protection, SlotRule, Slots, append, keep_best, slot_of_position

BATCH, HEADS, DIM = 2, 3, 4
CPU = torch.device("cpu")
NONE = Protection(recent=0, sinks=0)


def tokens(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keys, values [B, H, count, D] and scores [B, H, count], no two scores of a head equal."""
    generator = torch.Generator().manual_seed(seed)
    key = torch.randn(BATCH, HEADS, count, DIM, generator=generator)
    value = torch.randn(BATCH, HEADS, count, DIM, generator=generator)
    order = torch.rand(BATCH, HEADS, count, generator=generator).argsort(-1)
    return key, value, order.float() - count / 2


def kept_by_ranking(score: torch.Tensor, seen: int, rule: SlotRule) -> torch.Tensor:
    """Positions [B, H, min(seen, slots)], ascending, of what a full ranking of `seen` tokens keeps."""
    place = torch.arange(seen)
    protected = (place >= seen - rule.recent) | (place < rule.sinks)
    rank = score[..., :seen].masked_fill(protected, float("inf"))
    return rank.topk(min(seen, rule.slots)).indices.sort(-1).values


def positions(start: int, length: int) -> torch.Tensor:
    return torch.arange(start, start + length).expand(BATCH, -1)


def check_store(
    store: Slots, rule: SlotRule, seen: int, key: torch.Tensor, value: torch.Tensor,
    score: torch.Tensor,
) -> None:  # fmt: skip
    """The store holds what a full ranking keeps, in its first slots, each with its own numbers."""
    filled = min(seen, rule.slots)
    held = store.positions[..., :filled].long()
    assert (held >= 0).all()
    assert (store.positions[..., filled:] == -1).all()
    assert (store.scores[..., filled:] == float("-inf")).all()
    torch.testing.assert_close(held.sort(-1).values, kept_by_ranking(score, seen, rule))
    torch.testing.assert_close(store.scores[..., :filled], score.gather(-1, held))
    wide = held[..., None].expand(-1, -1, -1, DIM)
    torch.testing.assert_close(store.keys[:, :, :filled], key.gather(2, wide))
    torch.testing.assert_close(store.values[:, :, :filled], value.gather(2, wide))


@st.composite
def rules(draw: st.DrawFn) -> SlotRule:
    sinks, recent = draw(st.integers(0, 3)), draw(st.integers(1, 5))
    slots = draw(st.integers(sinks + recent + 1, sinks + recent + 8))
    return SlotRule(slots, recent, sinks, "published")


@given(
    rule=rules(),
    pieces=st.lists(st.integers(1, 16), min_size=1, max_size=12),
    seed=st.integers(0, 999),
)
@settings(max_examples=50)
def test_any_cut_equals_ranking_everything(rule: SlotRule, pieces: list[int], seed: int) -> None:
    pieces = [min(piece, rule.slots) for piece in pieces]
    key, value, score = tokens(sum(pieces), seed)
    store = rule.allocate(BATCH, KVForm(HEADS, DIM, DIM, torch.float32, CPU))
    seen = 0
    for piece in pieces:
        cut = slice(seen, seen + piece)
        write = replace_lowest if piece == 1 else keep_best
        protection = Protection(rule.recent, rule.sinks)
        write(store, protection, key[:, :, cut], value[:, :, cut], score[..., cut], positions(seen, piece))
        seen += piece
        check_store(store, rule, seen, key, value, score)


@given(
    slots=st.integers(1, 12),
    pieces=st.lists(st.integers(2, 12), min_size=1, max_size=6),
    seed=st.integers(0, 999),
)
@settings(max_examples=30)
def test_without_protection_it_is_qfilter_press(slots: int, pieces: list[int], seed: int) -> None:
    """kvpress's QFilterPress: with f the published filter, which is negated, a head keeps
    topk(n_kept) of -<k, f> over all its keys."""
    rule = SlotRule(slots, recent=0, sinks=0, score="published")
    pieces = [min(piece, slots) for piece in pieces]
    key, value, _ = tokens(sum(pieces), seed)
    published = torch.randn(HEADS, DIM, generator=torch.Generator().manual_seed(seed + 1))
    score = -torch.einsum("bhsd,hd->bhs", key, published)
    store = rule.allocate(BATCH, KVForm(HEADS, DIM, DIM, torch.float32, CPU))
    seen = 0
    for piece in pieces:
        cut = slice(seen, seen + piece)
        place = positions(seen, piece)
        keep_best(store, NONE, key[:, :, cut], value[:, :, cut], score[..., cut], place)
        seen += piece
    kept = store.positions[..., : min(seen, slots)].long().sort(-1).values
    wanted = score.topk(min(seen, slots)).indices.sort(-1).values
    torch.testing.assert_close(kept, wanted)


def test_a_cleared_store_starts_afresh() -> None:
    rule = SlotRule(5, recent=2, sinks=1, score="published")
    store = rule.allocate(BATCH, KVForm(HEADS, DIM, DIM, torch.float32, CPU))
    keep_best(store, Protection(2, 1), *tokens(5, seed=0), positions(0, 5))
    rule.clear(store)
    key, value, score = tokens(4, seed=1)
    keep_best(store, Protection(2, 1), key, value, score, positions(0, 4))
    check_store(store, rule, 4, key, value, score)


@given(pieces=st.lists(st.integers(1, 9), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=20)
def test_appended_tokens_lie_where_the_search_would_put_them(pieces: list[int], seed: int) -> None:
    rule = SlotRule(60, recent=1, sinks=0, score="recency", is_bounded=False)
    key, value, score = tokens(sum(pieces), seed)
    appended, searched = (rule.allocate(BATCH, KVForm(HEADS, DIM, DIM, torch.float32, CPU)) for _ in range(2))
    seen = 0
    for piece in pieces:
        cut = slice(seen, seen + piece)
        new = (key[:, :, cut], value[:, :, cut], score[..., cut], positions(seen, piece))
        append(appended, *new)
        for i in range(piece):
            one = (new[0][:, :, i : i + 1], new[1][:, :, i : i + 1], new[2][..., i : i + 1])
            replace_lowest(searched, Protection(1, 0), *one, positions(seen + i, 1))
        seen += piece
    for actual, expected in zip(appended, searched, strict=True):
        torch.testing.assert_close(actual, expected, atol=0, rtol=0)


def test_a_row_behind_the_last_slot_is_given_the_last() -> None:
    held = torch.full((2, HEADS, 5), -1, dtype=torch.int32)
    slot = slot_of_position(held, torch.tensor([[3], [5]]))
    assert slot.tolist() == [[[3]] * HEADS, [[4]] * HEADS]
