"""Sessions are found by the ids that they have read alone; the oldest go to disk, then away."""

from pathlib import Path
from typing import Any

import pytest
import torch
from served import prompt, served_model

from qfpass.serving.kept_sessions import KeptSessions, digests
from qfpass.serving.session_files import SessionFiles

NO_LIMIT = 2**40


@pytest.fixture(scope="module")
def model() -> Any:
    return served_model()


def kept_of(model: Any, memory: int = NO_LIMIT, disk: int = 0, folder: Path | None = None) -> KeptSessions:
    files = SessionFiles(folder, disk, model.qfpass_decoder.identity)
    return KeptSessions(model.session, model.pool(1).nbytes, memory, files)


def read(model: Any, ids: list[int]) -> Any:
    session = model.session()
    model(torch.tensor([ids]), past_key_values=session)
    return session


def keep(kept: KeptSessions, model: Any, ids: list[int], name: str = "") -> bytes:
    session, digest = read(model, ids), digests(ids, [len(ids)], name)[len(ids)]
    assert kept.make_room()
    kept.keep(digest, len(ids), session)
    return digest


def test_the_longest_beginning_of_the_ids_is_found(model: Any) -> None:
    kept, ids = kept_of(model), prompt(30)
    for length in (4, 20, 10, 30):
        keep(kept, model, ids[:length])
    assert [kept.find(ids[:n], "", 0)[1] for n in (3, 4, 5, 20, 21, 30)] == [0, 0, 4, 10, 20, 20]
    other = [*ids[:15], 52 - ids[15], *ids[16:]]
    session, length = kept.find(other, "", 0)
    assert length == 10 and session is not None and session.tokens_seen == 10
    assert kept.find([52 - ids[0], *ids[1:]], "", 0) == (None, 0)


def test_a_named_conversation_is_its_own(model: Any) -> None:
    kept, ids = kept_of(model), prompt(10)
    keep(kept, model, ids, "anna")
    asked = [*ids, 1]
    assert [kept.find(asked, name, 0)[1] for name in ("anna", "bob", "", "ann")] == [10, 0, 0, 0]


def test_what_is_shared_is_found_at_its_length_only(model: Any) -> None:
    kept, ids = kept_of(model), prompt(10)
    kept.keep(digests(ids, [6], None)[6], 6, read(model, ids[:6]))
    assert [kept.find(ids, "bob", shared)[1] for shared in (0, 5, 6, 7)] == [0, 0, 6, 0]


def test_the_least_recently_used_goes_to_disk_and_comes_back(model: Any) -> None:
    texts = [prompt(12, seed) for seed in range(4)]
    one = read(model, texts[0]).nbytes
    kept = kept_of(model, 2 * one, NO_LIMIT)
    for text in texts[:2]:
        keep(kept, model, text)
    assert kept.find([*texts[0], 1], "", 0)[1] == 12
    keep(kept, model, texts[2])  # texts[1] goes
    assert kept.nbytes == 2 * one and one < kept.disk_nbytes < 2 * one
    session, length = kept.find([*texts[1], 1], "", 0)
    assert length == 12 and kept.nbytes == 2 * one
    for held, wanted in zip(session.stores, read(model, texts[1]).stores, strict=True):
        for a, b in zip(held, wanted, strict=True):
            torch.testing.assert_close(a, b)
    folder = kept._files._folder
    assert folder.stat().st_mode & 0o077 == 0
    kept.close()
    assert not folder.exists()


def test_disk_is_bounded_too(model: Any) -> None:
    texts = [prompt(12, seed) for seed in range(6)]
    one = read(model, texts[0]).nbytes
    kept = kept_of(model, one, 3 * one)  # a file is a little larger than its session
    for text in texts:
        keep(kept, model, text)
    assert kept.nbytes == one and one < kept.disk_nbytes <= 3 * one
    assert [kept.find([*texts[n], 1], "", 0)[1] for n in (0, 1, 2, 5, 4)] == [0, 0, 0, 12, 12]
    assert kept.nbytes <= one and kept.disk_nbytes <= 3 * one


def test_a_file_larger_than_the_disk_is_not_kept(model: Any) -> None:
    """Its session would fit, but not the header and the ids that stand beside it."""
    one = read(model, prompt(12)).nbytes
    kept = kept_of(model, one, one)
    for seed in range(2):
        keep(kept, model, prompt(12, seed))
    assert kept.disk_nbytes == 0 and not list(kept._files._folder.iterdir())


def test_what_is_in_a_folder_outlives_its_process(model: Any, tmp_path: Path) -> None:
    """It is written at once, and other models don't see it."""
    before = kept_of(model, disk=NO_LIMIT, folder=tmp_path)
    keep(before, model, prompt(12))
    before.close()
    (folder,) = tmp_path.iterdir()
    assert folder.stat().st_mode & 0o077 == 0
    session, length = kept_of(model, disk=NO_LIMIT, folder=tmp_path).find([*prompt(12), 1], "", 0)
    assert length == 12 and session is not None and session.tokens_seen == 12
    other = KeptSessions(model.session, 1, 9, SessionFiles(tmp_path, NO_LIMIT, {"weights": "others"}))
    assert other.find([*prompt(12), 1], "", 0) == (None, 0)


def test_without_memory_nothing_is_kept(model: Any) -> None:
    assert not kept_of(model, memory=0).make_room()


def test_a_file_that_cant_be_read_is_a_text_to_read_again(model: Any, tmp_path: Path) -> None:
    kept = kept_of(model, 2 * read(model, prompt(12)).nbytes, NO_LIMIT, tmp_path)
    for seed in range(3):
        keep(kept, model, prompt(12, seed))
    for file in tmp_path.rglob("*.safetensors"):
        file.write_bytes(b"no session")
    assert kept.find([*prompt(12), 1], "", 0) == (None, 0)
    assert kept.find([*prompt(12, 2), 1], "", 0)[1] == 12  # in memory still
