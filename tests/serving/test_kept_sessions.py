"""Sessions are found by the ids that they have read alone; the oldest go to disk, then away."""

from pathlib import Path
from typing import Any

import pytest
import torch
from served import prompt, served_model

from qfpass.serving.kept_sessions import KeptSessions, digests, shared_digest

NO_LIMIT = 2**40


@pytest.fixture(scope="module")
def model() -> Any:
    return served_model()


def read(model: Any, ids: list[int]) -> Any:
    session = model.session()
    model(torch.tensor([ids]), past_key_values=session)
    return session


def keep(kept: KeptSessions, model: Any, ids: list[int], name: str = "") -> bytes:
    session, digest = read(model, ids), digests(ids, [len(ids)], name)[len(ids)][0]
    assert kept.make_room(session.nbytes)
    kept.keep(digest, len(ids), session)
    return digest


def test_the_longest_beginning_of_the_ids_is_found(model: Any) -> None:
    kept, ids = KeptSessions(model.session, NO_LIMIT, 0), prompt(30)
    for length in (4, 20, 10, 30):
        keep(kept, model, ids[:length])
    assert [kept.find(ids[:n], "", 0)[1] for n in (3, 4, 5, 20, 21, 30)] == [0, 0, 4, 10, 20, 20]
    other = [*ids[:15], 52 - ids[15], *ids[16:]]
    session, length = kept.find(other, "", 0)
    assert length == 10 and session is not None and session.tokens_seen == 10
    assert kept.find([52 - ids[0], *ids[1:]], "", 0) == (None, 0)


def test_a_named_conversation_is_its_own(model: Any) -> None:
    kept, ids = KeptSessions(model.session, NO_LIMIT, 0), prompt(10)
    keep(kept, model, ids, "anna")
    asked = [*ids, 1]
    assert [kept.find(asked, name, 0)[1] for name in ("anna", "bob", "", "ann")] == [10, 0, 0, 0]


def test_what_is_shared_is_found_at_its_length_only(model: Any) -> None:
    kept, ids = KeptSessions(model.session, NO_LIMIT, 0), prompt(10)
    kept.keep(shared_digest(ids, 6), 6, read(model, ids[:6]))
    assert [kept.find(ids, "bob", shared)[1] for shared in (0, 5, 6, 7)] == [0, 0, 6, 0]


def test_the_least_recently_used_goes_to_disk_and_comes_back(model: Any, tmp_path: Path) -> None:
    texts = [prompt(12, seed) for seed in range(4)]
    one = read(model, texts[0]).nbytes
    kept = KeptSessions(model.session, 2 * one, NO_LIMIT, tmp_path)
    for text in texts[:2]:
        keep(kept, model, text)
    kept.find([*texts[0], 1], "", 0)
    keep(kept, model, texts[2])  # texts[1] goes
    assert (kept.nbytes, kept.disk_nbytes, len(kept)) == (2 * one, one, 3)
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    session, length = kept.find([*texts[1], 1], "", 0)
    assert length == 12 and kept.nbytes == 2 * one
    for held, wanted in zip(session.stores, read(model, texts[1]).stores, strict=True):
        for a, b in zip(held, wanted, strict=True):
            torch.testing.assert_close(a, b)
    kept.close()
    assert not list(tmp_path.iterdir())


def test_disk_is_bounded_too(model: Any, tmp_path: Path) -> None:
    texts = [prompt(12, seed) for seed in range(6)]
    one = read(model, texts[0]).nbytes
    kept = KeptSessions(model.session, 2 * one, 2 * one, tmp_path)
    for text in texts:
        keep(kept, model, text)
    assert (kept.nbytes, kept.disk_nbytes, len(kept)) == (2 * one, 2 * one, 4)
    assert [kept.find([*texts[n], 1], "", 0)[1] for n in (0, 1, 5, 4, 2)] == [0, 0, 12, 12, 12]
    assert kept.nbytes <= 2 * one and kept.disk_nbytes <= 2 * one


def test_without_memory_nothing_is_kept(model: Any) -> None:
    kept = KeptSessions(model.session, 0, NO_LIMIT)
    assert not kept.make_room(1)


def test_a_file_that_is_gone_is_a_text_to_read_again(model: Any, tmp_path: Path) -> None:
    one = read(model, prompt(12)).nbytes
    kept = KeptSessions(model.session, one, NO_LIMIT, tmp_path)
    for seed in range(2):
        keep(kept, model, prompt(12, seed))
    for file in tmp_path.rglob("*.safetensors"):
        file.unlink()
    assert kept.find([*prompt(12), 1], "", 0) == (None, 0)
    assert len(kept) == 1
