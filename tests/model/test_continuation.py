"""generate on a session that holds tokens takes the whole text or what is new, and refuses what differs."""

import os
from pathlib import Path

import pytest
import torch
from bounded import run_plainly
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import padded, text
from tiny import FAMILIES

import qfpass
from qfpass import Session
from qfpass.errors import InputError
from qfpass.sessions.read_ids import ReadIds
from qfpass.sessions.rows import TokenColumns

EXAMPLES = int(os.environ.get("QFPASS_EXAMPLES", "8"))
ORIGINAL = FAMILIES["llama"]()
MODEL = run_plainly(qfpass.compile(ORIGINAL, ratio=1, backend="eager", verify=False))
PADDING = ORIGINAL.generation_config.pad_token_id
GREEDY = {"max_new_tokens": 3, "do_sample": False}


def read(ids: torch.Tensor) -> Session:
    session = MODEL.session()
    MODEL(ids, cache=session)
    return session


def written(ids: torch.Tensor, session: Session, **inputs: torch.Tensor) -> list[int]:
    out = MODEL.generate(ids, cache=session, **inputs, **GREEDY)
    assert torch.equal(out[:, : ids.shape[1]], ids)
    return out[0, ids.shape[1] :].tolist()


def by_the_original(*parts: torch.Tensor) -> list[int]:
    """What it writes after these ids, all of which are tokens, also one that is the padding id."""
    whole = torch.cat(parts, 1)
    mask = torch.ones_like(whole)
    return ORIGINAL.generate(whole, attention_mask=mask, **GREEDY)[0, whole.shape[1] :].tolist()


def other_than(had: torch.Tensor, length: int, seed: int) -> torch.Tensor:
    """Ids whose first is another than those had begin with."""
    ids = text(length, seed=seed)
    ids[0, 0] = (int(had[0, 0]) + 1) % 50 + 1
    return ids


@pytest.mark.parametrize("held", [1, 10, 15, 20])
@pytest.mark.parametrize("mask", ["none", "of the new", "of both"])
def test_new_ids_alone_go_on(held: int, mask: str) -> None:
    """Shorter, as long and longer than what was read, under every mask that a caller may have."""
    had = text(held, seed=1)
    new = other_than(had, 15, 2)
    masks = {"none": None, "of the new": torch.ones_like(new), "of both": torch.ones(1, held + 15)}
    given = {} if masks[mask] is None else {"attention_mask": masks[mask].long()}
    session = read(had)
    assert written(new, session, **given) == by_the_original(had, new)
    assert session.tokens_seen == held + 15 + 2


@pytest.mark.parametrize("with_mask", [False, True])
def test_the_whole_text_goes_on(with_mask: bool) -> None:
    had, new = text(10, seed=1), text(5, seed=2)
    whole, session = torch.cat([had, new], 1), read(had)
    given = {"attention_mask": torch.ones_like(whole)} if with_mask else {}
    assert written(whole, session, **given) == by_the_original(had, new)
    assert session.tokens_seen == 10 + 5 + 2


def test_a_mask_of_both_says_that_ids_are_new_whatever_they_are() -> None:
    had = text(10, seed=1)
    session = read(had)
    mask = torch.ones(1, 20, dtype=torch.long)
    assert written(had, session, attention_mask=mask) == by_the_original(had, had)


@pytest.mark.parametrize("place", [1, 4, 9])
def test_a_text_that_differs_is_refused_with_the_token(place: int) -> None:
    had = text(10, seed=1)
    whole = torch.cat([had, text(5, seed=2)], 1)
    whole[0, place] = int(whole[0, place]) % 50 + 1
    session = read(had)
    with pytest.raises(InputError, match=rf"differs at token {place}: {int(whole[0, place])} instead of"):
        written(whole, session)
    with pytest.raises(InputError, match=f"differs at token {place}"):
        written(whole[:, : place + 1], session)
    assert session.tokens_seen == 10
    assert written(torch.cat([had, whole[:, 10:]], 1), session) == by_the_original(had, whole[:, 10:])


@pytest.mark.parametrize("length", [10, 6, 1])
def test_ids_that_were_read_already_are_refused(length: int) -> None:
    had = text(10, seed=1)
    session = read(had)
    with pytest.raises(InputError, match="has read all of these ids already"):
        written(had[:, :length], session)
    assert session.tokens_seen == 10


def test_what_was_read_goes_where_the_session_goes(tmp_path: Path) -> None:
    had = text(10, seed=1)
    session = read(had)
    session.save(tmp_path / "session")
    differs = torch.cat([had, had], 1)
    differs[0, 3] = int(differs[0, 3]) % 50 + 1
    for each in (session.fork(), MODEL.session().load(tmp_path / "session")):
        with pytest.raises(InputError, match="differs at token 3"):
            written(differs, each)
    session.reset()
    assert written(differs, session) == by_the_original(differs)


def test_rows_have_read_their_own() -> None:
    """Rows of different lengths, padded on the left: the whole batch, then one row that differs."""
    rows = [text(n, seed=n) for n in (4, 9)]
    inputs = padded(rows, "left")
    session = MODEL.session()
    MODEL(**inputs, cache=session)
    more = torch.cat([text(3, seed=7), text(3, seed=8)])
    whole = torch.cat([inputs["input_ids"], more], 1)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(more)], 1)
    out = MODEL.generate(whole, attention_mask=mask, cache=session.fork(), **GREEDY)
    for i, row in enumerate(rows):
        assert out[i, -3:].tolist() == by_the_original(row, more[i : i + 1])
    whole[1, 5] = int(whole[1, 5]) % 50 + 1
    with pytest.raises(InputError, match="row 1 begins like the 9 tokens"):
        MODEL.generate(whole, attention_mask=mask, cache=session, **GREEDY)


def test_rows_that_change_places_take_their_ids_along() -> None:
    session = MODEL.session()
    rows = torch.cat([text(6, seed=1), text(6, seed=2)])
    MODEL(rows, cache=session)
    session.reorder_cache(torch.tensor([1, 0]))
    assert [ids.tolist() for ids in session.read_ids.rows()] == rows.flip(0).tolist()
    session.batch_select_indices(torch.tensor([1]))
    assert session.read_ids.rows()[0].tolist() == rows[0].tolist()


def test_a_failed_call_reads_nothing() -> None:
    session = read(text(5, seed=1))
    before = session.read_ids
    with pytest.raises(InputError):
        MODEL(torch.full((1, 3), 10**6), cache=session)
    assert session.read_ids is before


@pytest.mark.parametrize("where", [6, 8, 9])
def test_the_padding_id_is_a_token_where_a_text_goes_on(where: int) -> None:
    """transformers guesses a mask from the padding id, also where the model itself has written it.

    The session has read nine tokens.
    """
    whole = text(13, seed=1)
    whole[0, where] = PADDING
    session = read(whole[:, :9])
    assert written(whole, session) == by_the_original(whole)
    assert session.tokens_seen == 13 + 2


def test_one_text_padded_on_the_left_goes_on_without_a_mask() -> None:
    had, new = text(9, seed=1), text(4, seed=2)
    padding = torch.full((1, 3), PADDING)
    session = MODEL.session()
    first = MODEL.generate(torch.cat([padding, had], 1), cache=session, **GREEDY)
    assert session.tokens_seen == 9 + 2
    wrote = first[:, -3:]
    assert written(torch.cat([first, new], 1), session) == by_the_original(had, wrote, new)
    assert session.tokens_seen == 9 + 3 + 4 + 2


def test_the_padding_id_is_a_token_for_several_samples_of_a_text() -> None:
    whole = text(13, seed=1)
    whole[0, 9] = PADDING
    session = read(whole[:, :9])
    session.batch_repeat_interleave(2)
    MODEL.generate(whole[:, 9:], cache=session, num_return_sequences=2, num_beams=2, **GREEDY)
    assert session.row_tokens == (13 + 2,) * 2


def test_the_padding_id_is_padding_in_a_batch_that_goes_on() -> None:
    had, longer, shorter = text(9).repeat(2, 1), text(5, seed=1), text(3, seed=2)
    had[1, 4] = PADDING
    session = read(had)
    new = padded([longer, shorter], "left")["input_ids"]
    MODEL.generate(torch.cat([had, new], 1), cache=session, **GREEDY)
    assert session.row_tokens == (9 + 5 + 2, 9 + 3 + 2)


@given(lengths=st.lists(st.integers(1, 3), min_size=1, max_size=600))
@settings(max_examples=EXAMPLES)
def test_ids_are_kept_in_order_however_many_calls(lengths: list[int]) -> None:
    read_ids, wanted = ReadIds(), [list[int](), list[int]()]
    for number, length in enumerate(lengths):
        ids = torch.arange(number, number + 3).repeat(2, 1)
        spans = [TokenColumns(0, length), TokenColumns(3 - length, 3) if number % 5 else TokenColumns(0, 0)]
        read_ids = read_ids.after(ids, spans)
        for row, (start, end) in enumerate(spans):
            wanted[row] += ids[row, start:end].tolist()
    assert [ids.tolist() for ids in read_ids.rows()] == wanted
    assert read_ids.chosen([1, 0, 1]).rows()[2].tolist() == wanted[1]


TURNS = st.lists(
    st.tuples(st.sampled_from(("whole", "new", "masked", "differs", "again")), st.integers(1, 12)),
    min_size=1,
    max_size=6,
)


@given(turns=TURNS)
@settings(max_examples=EXAMPLES)
def test_any_turns_write_what_the_original_writes(turns: list[tuple[str, int]]) -> None:
    """However each turn is given; a text that differs, or was read already, changes nothing."""
    session, so_far = MODEL.session(), text(0)
    for number, (form, length) in enumerate(turns):
        had = so_far[:, : session.tokens_seen]
        new = other_than(so_far, length, number) if so_far.shape[1] else text(length, seed=number)
        unread = so_far[:, session.tokens_seen :]  # the token that was written last
        whole, after = torch.cat([so_far, new], 1), torch.cat([unread, new], 1)
        if had.shape[1] > 1 and form in ("differs", "again"):
            wrong = had.clone() if form == "again" else whole.clone()
            if form == "differs":
                last = had.shape[1] - 1
                wrong[0, last] = int(wrong[0, last]) % 50 + 1
            with pytest.raises(InputError):
                written(wrong, session)
            assert session.tokens_seen == had.shape[1]
            continue
        given, ids = {}, whole
        if had.shape[1] and form == "masked":
            ids, given = after, {"attention_mask": torch.ones(1, whole.shape[1], dtype=torch.long)}
        elif had.shape[1] and form == "new" and int(after[0, 0]) != int(had[0, 0]):
            ids = after
        wrote = written(ids, session, **given)
        assert wrote == by_the_original(whole)
        so_far = torch.cat([whole, torch.tensor([wrote])], 1)
