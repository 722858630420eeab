"""A session as a cache: forked, reordered, asked for positions, and what it refuses."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import FAMILIES, MAX_POSITIONS
from torch import nn

import qfpass
from qfpass.errors import SessionError

WINDOW = 7


def text(length: int, batch: int = 1, seed: int = 0) -> torch.Tensor:
    """Random ids [batch, length], none of them the padding token, 0."""
    return torch.randint(1, 61, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return FAMILIES["gemma3"](window=WINDOW)


@pytest.fixture(scope="module")
def bounded(original: nn.Module) -> nn.Module:
    return qfpass.compile(original, budget=24, chunk=10, recent=4, score="recency", backend="eager")


@pytest.mark.parametrize("length", [5, 40], ids=["unfilled", "evicting"])
def test_a_fork_goes_its_own_way(bounded: nn.Module, length: int) -> None:
    session = bounded.session()
    bounded(text(length), past_key_values=session)
    fork, kept = session.fork(), [t.clone() for store in session.stores for t in store]
    questions = [text(13, seed=seed) for seed in (1, 2)]
    alone = []
    for question in questions:
        fresh = bounded.session()
        bounded(text(length), past_key_values=fresh)
        alone.append(bounded(question, past_key_values=fresh).logits)
    assert torch.equal(bounded(questions[0], past_key_values=fork).logits, alone[0])
    assert all(map(torch.equal, kept, [t for store in session.stores for t in store]))
    assert (fork.tokens_seen, session.tokens_seen) == (length + 13, length)
    assert torch.equal(bounded(questions[1], past_key_values=session).logits, alone[1])


@pytest.mark.parametrize("length", [3, 12, 60])
def test_positions_are_the_tokens_that_a_layer_holds(bounded: nn.Module, length: int) -> None:
    session = bounded.session()
    for ids in text(length, batch=2).split(9, dim=1):
        bounded(ids, past_key_values=session)
    window, full = (session.positions(layer) for layer in (0, 1))
    newest = set(range(max(0, length - WINDOW), length))
    kept = set(range(length)) if length <= 24 else {0, 1, 2, 3, *range(length - 20, length)}
    for held, wanted in ((window, newest), (full, kept)):
        assert (held.shape[:2], held.dtype) == ((2, 2), torch.int32)
        for row in held.flatten(0, 1).tolist():
            assert {p for p in row if p >= 0} == wanted
            assert len([p for p in row if p >= 0]) == len(wanted)


def test_positions_of_a_layer_that_is_not_there(bounded: nn.Module) -> None:
    with pytest.raises(SessionError, match="attention 0: the session has 0 stores"):
        bounded.session().positions(0)


@pytest.mark.parametrize("length", [4, 30])
def test_beam_search_writes_what_the_original_writes(original: nn.Module, length: int) -> None:
    compiled = qfpass.compile(original, ratio=1, backend="eager", chunk=16)
    settings = {"max_new_tokens": 12, "do_sample": False, "num_beams": 3, "num_return_sequences": 2}
    ids = text(length, batch=2)
    assert compiled.generate(ids, **settings).tolist() == original.generate(ids, **settings).tolist()


def test_rows_are_reordered_repeated_and_selected(bounded: nn.Module) -> None:
    ids, more = text(40, batch=3), text(5, batch=3, seed=1)

    def read(order: list[int], change: str, argument: object) -> None:
        session = bounded.session()
        bounded(ids, past_key_values=session)
        getattr(session, change)(argument)
        assert session.batch_size == len(order)
        wanted = bounded.session()
        bounded(ids[order], past_key_values=wanted)
        actual = bounded(more[order], past_key_values=session).logits
        torch.testing.assert_close(actual, bounded(more[order], past_key_values=wanted).logits)

    read([2, 2, 0], "reorder_cache", torch.tensor([2, 2, 0]))
    read([0, 0, 1, 1, 2, 2], "batch_repeat_interleave", 2)
    read([2, 1], "batch_select_indices", torch.tensor([2, 1]))


def test_taking_tokens_back_is_refused(bounded: nn.Module) -> None:
    session = bounded.session()
    bounded(text(30), past_key_values=session)
    with pytest.raises(SessionError, match="2 tokens can't be taken back"):
        session.crop(-2)
    assert session.tokens_seen == 30
    assert bounded.qfpass_decoder.sizes.context_length == MAX_POSITIONS


def test_a_saved_session_goes_on_in_another_compile(original: nn.Module, tmp_path: Path) -> None:
    settings = {"budget": 24, "chunk": 10, "recent": 4, "score": "recency", "backend": "eager"}
    first, second = (qfpass.compile(original, **settings) for _ in range(2))
    session = first.session()
    first(text(40, batch=2), past_key_values=session)
    session.save(tmp_path / "session")
    loaded = second.session()
    assert loaded.load(tmp_path / "session") is loaded
    assert (loaded.tokens_seen, loaded.nbytes) == (40, session.nbytes)
    more = text(9, batch=2, seed=1)
    wanted, actual = (m(more, past_key_values=s).logits for m, s in ((first, session), (second, loaded)))
    assert torch.equal(actual, wanted)


IN_A_NEW_PROCESS = """
import sys
from test_session import compile_bounded, more_tokens
model = compile_bounded()
session = model.session().load(sys.argv[1])
print(more_tokens(model, session))
"""


def compile_bounded() -> nn.Module:
    return qfpass.compile(
        FAMILIES["gemma3"](window=WINDOW), budget=24, chunk=10, recent=4, score="recency", backend="eager"
    )


def more_tokens(model: nn.Module, session: qfpass.Session) -> list[int]:
    """Twenty tokens that greedy search adds to three more of the text."""
    mask = torch.ones(1, session.columns + 3, dtype=torch.long)
    settings = {"attention_mask": mask, "max_new_tokens": 20, "do_sample": False}
    return model.generate(text(3, seed=1), past_key_values=session, **settings)[0, 3:].tolist()


def test_a_saved_session_goes_on_in_a_new_process(tmp_path: Path) -> None:
    model = compile_bounded()
    session = model.session()
    model(text(40), past_key_values=session)
    session.save(tmp_path / "session")
    here = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, "-c", IN_A_NEW_PROCESS, str(tmp_path / "session")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (here, here.parent, here.parents[1])))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip().splitlines()[-1] == str(more_tokens(model, session))


def test_an_empty_session_is_saved_too(bounded: nn.Module, tmp_path: Path) -> None:
    bounded.session().save(tmp_path / "empty")
    session = bounded.session()
    bounded(text(9), past_key_values=session)
    assert session.load(tmp_path / "empty").tokens_seen == 0
    ids = text(30)
    assert torch.equal(bounded(ids, past_key_values=session).logits, bounded(ids).logits)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": {"seed": 1}}, "in its weights"),
        ({"budget": 25}, "in its stores"),
        ({"recent": 5}, "in its stores"),
        ({"model": {"dtype": torch.bfloat16}}, "in its dtype"),
    ],
    ids=["weights", "budget", "recent", "dtype"],
)
def test_a_session_of_something_else_is_refused(
    bounded: nn.Module, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    session = bounded.session()
    bounded(text(30), past_key_values=session)
    session.save(tmp_path / "session")
    settings = {"budget": 24, "chunk": 10, "recent": 4, "score": "recency", "backend": "eager"}
    sizes = {"window": WINDOW} | change.pop("model", {})
    other = qfpass.compile(FAMILIES["gemma3"](**sizes), verify=False, **(settings | change)).session()
    with pytest.raises(SessionError, match=named):
        other.load(tmp_path / "session")
    assert (other.tokens_seen, other.nbytes) == (0, 0)


def test_what_is_no_session_is_refused(bounded: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("once upon a time")
    for path in (tmp_path / "text", tmp_path / "nowhere", tmp_path):
        with pytest.raises(SessionError, match="can't be read as a session"):
            bounded.session().load(path)
    with pytest.raises(SessionError, match="can't be written"):
        bounded.session().save(tmp_path / "nowhere" / "session")
