"""Rows of different lengths in one batch: each gives what it gives alone, and padding leaves no trace."""

from typing import Any

import pytest
import torch
from bounded import graphs_of_one_batch
from rows import LENGTHS, ROWS, SETTINGS, padded, text
from tiny import FAMILIES
from torch import nn

import qfpass
from qfpass.errors import InputError


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return FAMILIES["gemma3"](window=7)


@pytest.fixture(scope="module")
def model(original: nn.Module) -> nn.Module:
    """Bounded layers of 24 slots beside rings of 7."""
    return qfpass.compile(original, budget=24, **SETTINGS)


each_side = pytest.mark.parametrize("side", ["left", "right"])


@each_side
def test_generate_writes_for_each_row_what_it_writes_alone(model: nn.Module, side: str) -> None:
    """Before and after the first eviction: the rows start with 3 to 40 tokens and end with 63 to 100."""
    session = model.session()
    inputs = padded(ROWS, side)
    settings = {"max_new_tokens": 60, "do_sample": False}
    out = model.generate(**inputs, past_key_values=session, **settings)
    assert session.row_tokens == tuple(length + 59 for length in LENGTHS)
    for row, made in zip(ROWS, out, strict=True):
        alone = model.generate(row, **settings)
        assert made[inputs["input_ids"].shape[1] :].tolist() == alone[0, row.shape[1] :].tolist()


@each_side
def test_no_compression_equals_the_original(original: nn.Module, side: str) -> None:
    """Each row alone in eager float32 gives the logits at its own columns."""
    compiled = qfpass.compile(original, ratio=1, backend="eager", chunk=10)
    inputs = padded(ROWS, side)
    logits = compiled(**inputs).logits
    for i, row in enumerate(ROWS):
        with torch.no_grad():
            wanted = original(row).logits[0]
        own = inputs["attention_mask"][i].bool()
        torch.testing.assert_close(logits[i, own], wanted, atol=1e-4, rtol=1e-4)
        beside = logits[i, ~own]
        value = torch.zeros_like(wanted[-1]) if side == "left" else wanted[-1]
        torch.testing.assert_close(beside, value.expand_as(beside), atol=1e-4, rtol=1e-4)


@each_side
def test_turns_of_different_lengths(model: nn.Module, side: str) -> None:
    """Three turns, one of them without a word of some rows; logits, stores and counts are the row's own."""
    turns = [ROWS, [text(n, seed=9 + n) for n in (5, 1, 13, 2)], [text(1, seed=n) for n in range(4)]]
    session, alone = model.session(), [model.session() for _ in ROWS]
    for turn in turns:
        logits = model(**padded(turn, side), past_key_values=session, logits_to_keep=1).logits
        for i, (row, own) in enumerate(zip(turn, alone, strict=True)):
            wanted = model(row, past_key_values=own, logits_to_keep=1).logits
            torch.testing.assert_close(logits[i : i + 1], wanted, atol=1e-5, rtol=1e-5)
    assert session.row_tokens == tuple(own.tokens_seen for own in alone)
    for layer in range(2):
        for i, own in enumerate(alone):
            assert torch.equal(session.positions(layer)[i], own.positions(layer)[0])


def test_a_row_may_pause(model: nn.Module) -> None:
    session, alone = model.session(), [model.session() for _ in range(2)]
    for step, reads in enumerate([(3, 5), (1, 0), (0, 1), (1, 1), (0, 4), (30, 0), (0, 1), (1, 1)]):
        rows = [text(n, seed=10 * step + i) for i, n in enumerate(reads)]
        logits = model(**padded(rows, "right"), past_key_values=session, logits_to_keep=1).logits
        for i, row in enumerate(rows):
            wanted = torch.zeros_like(logits[:1])
            if row.shape[1]:
                wanted = model(row, past_key_values=alone[i], logits_to_keep=1).logits
            torch.testing.assert_close(logits[i : i + 1], wanted, atol=1e-5, rtol=1e-5)
    kept = [[t[i : i + 1] for store in session.stores for t in store] for i in range(2)]
    for rows, own in zip(kept, alone, strict=True):
        for actual, wanted in zip(rows, (t for store in own.stores for t in store), strict=True):
            torch.testing.assert_close(actual, wanted, atol=1e-5, rtol=1e-5)


def test_a_row_may_rest_at_the_end_of_its_context() -> None:
    """There is no position for another token of it, not even for one that is taken back."""
    model = qfpass.compile(FAMILIES["gpt2"](), budget=24, verify=False, **SETTINGS)
    session, alone, rows = model.session(), model.session(), [text(256), text(20)]
    model(**padded(rows, "left"), past_key_values=session, logits_to_keep=1)
    model(rows[1], past_key_values=alone)
    logits = model(**padded([text(0), text(1)], "left"), past_key_values=session).logits
    wanted = model(text(1), past_key_values=alone).logits
    torch.testing.assert_close(logits[1:], wanted, atol=1e-5, rtol=1e-5)


def test_a_row_that_has_ended_reads_nothing_more(model: nn.Module) -> None:
    """As if it had been generated alone up to its end, which is read once, whatever others write."""
    settings = {"max_new_tokens": 40, "do_sample": False, "pad_token_id": 0}
    alone = [model.generate(row, **settings)[0, row.shape[1] :].tolist() for row in ROWS]
    end = alone[0][4]
    session, inputs = model.session(), padded(ROWS, "left")
    out = model.generate(**inputs, eos_token_id=end, past_key_values=session, **settings)
    longest = out.shape[1] - max(LENGTHS)
    for written, made, length, seen in zip(alone, out, LENGTHS, session.row_tokens, strict=True):
        wanted = written[: written.index(end) + 1] if end in written else written
        assert made[max(LENGTHS) :].tolist() == (wanted + [0] * longest)[:longest]
        assert seen == length + min(len(wanted), longest - 1)
    assert session.resting == frozenset()


@pytest.mark.slow
def test_a_padded_batch_needs_two_more_steps_and_a_watch() -> None:
    """Beside what a row by itself needs: a step of the batch, one whose rows have filled different slots, the
    watch. Two layers of each kind, so that a region is used again."""
    compiled = qfpass.compile(
        FAMILIES["gemma3"](layers=4, window=7),
        budget=24,
        verify=False,
        **(SETTINGS | {"backend": "inductor"}),
    )
    settings = {"max_new_tokens": 30, "do_sample": False}
    compiled.generate(ROWS[0], **settings)
    alone = qfpass.report(compiled).graphs_compiled
    assert alone == graphs_of_one_batch(compiled)
    batch = alone + (1 + 2 + 1) + 2 + 1  # only the layers ask how many slots each row has filled
    for side in ("left", "right"):
        compiled.generate(**padded(ROWS, side), **settings)
        assert qfpass.report(compiled).graphs_compiled == batch
    compiled.generate(**padded(ROWS[:3], "left"), **settings)
    assert qfpass.report(compiled).graphs_compiled == batch


@pytest.mark.parametrize("settings", [{"num_beams": 3}, {"num_return_sequences": 2, "do_sample": True}])
def test_beams_and_samples_of_padded_rows(original: nn.Module, settings: dict[str, Any]) -> None:
    compiled = qfpass.compile(original, ratio=1, backend="eager", chunk=16)
    inputs = padded(ROWS[:3], "left")
    made = []
    for each in (compiled, original):
        torch.manual_seed(0)
        made.append(each.generate(**inputs, **{"max_new_tokens": 8, "do_sample": False, **settings}).tolist())
    assert made[0] == made[1]


def test_a_batch_of_unlike_rows_is_forked_saved_and_reordered(model: nn.Module, tmp_path: Any) -> None:
    session, more = model.session(), torch.cat([text(1, seed=n) for n in range(4)])
    model(**padded(ROWS, "left"), past_key_values=session)
    fork, loaded = session.fork(), model.session()
    session.save(tmp_path / "rows")
    assert loaded.load(tmp_path / "rows").row_tokens == LENGTHS
    order = torch.tensor([2, 0, 0, 3])
    reordered = session.fork()
    reordered.reorder_cache(order)
    wanted = model(more, past_key_values=session).logits
    for each in (fork, loaded):
        assert torch.equal(model(more, past_key_values=each).logits, wanted)
    actual = model(more[order], past_key_values=reordered).logits
    torch.testing.assert_close(actual, wanted[order], atol=1e-5, rtol=1e-5)


REFUSED = {
    "all padding": ([[0, 0, 0], [1, 1, 1]], "row 0 is nothing but padding"),
    "a hole": ([[1, 0, 1], [1, 1, 1]], "zeros between tokens"),
    "a weight": ([[2, 1, 1], [1, 1, 1]], "1 for tokens and 0 for padding"),
}


@pytest.mark.parametrize(("mask", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused_masks(model: nn.Module, mask: list[list[int]], reason: str) -> None:
    ids = torch.cat([text(3), text(3, seed=1)])
    with pytest.raises(InputError, match=reason):
        model(ids, attention_mask=torch.tensor(mask))


def test_a_mask_that_forgets_what_was_read_is_refused(model: nn.Module) -> None:
    session = model.session()
    model(**padded(ROWS[:2], "left"), past_key_values=session)
    mask = torch.ones(2, 41, dtype=torch.long)
    with pytest.raises(InputError, match=r"marks \[40, 40\] earlier tokens.*read \[3, 40\]"):
        model(torch.ones(2, 1, dtype=torch.long), attention_mask=mask, past_key_values=session)
    zeros = torch.zeros(2, 1, dtype=torch.long)
    with pytest.raises(InputError, match="call is nothing but padding"):
        model(zeros, attention_mask=zeros, past_key_values=session)
    assert session.row_tokens == (3, 40)
