"""A turn costs its new tokens, and no conversation learns of another."""

from pathlib import Path
from typing import Any

import pytest
import torch
from served import alone, prompt, served_model
from watched_pool import WatchedPool

from qfpass.serving import Answer, Scheduler


@pytest.fixture(scope="module")
def model() -> Any:
    return served_model(overflow="continue")


def ask(scheduler: Scheduler, ids: list[int], tokens: int = 4, **settings: Any) -> Answer:
    answer = scheduler.submit(ids, max_new_tokens=tokens, **settings)
    answer.result(30)
    return answer


def test_each_turn_reads_its_new_tokens_alone(model: Any) -> None:
    """And answers what the same conversation answers on a session."""
    session, ids, cached = model.session(), list[int](), 0
    with Scheduler(model, rows=2) as scheduler:
        for turn in range(5):
            ids += prompt(9, turn)
            answer = ask(scheduler, ids)
            assert answer.cached_tokens == cached
            assert answer.tokens == alone(model, ids, 4, session=session)
            ids += answer.tokens
            cached = len(ids) - 1  # the newest token was chosen, not read


def test_a_conversation_goes_on_from_the_end_of_its_prompt_where_its_answer_is_rewritten(model: Any) -> None:
    with Scheduler(model, rows=2) as scheduler:
        ids = prompt(20)
        answer = ask(scheduler, ids)
        rewritten = [*ids, 52 - answer.tokens[0], *prompt(5, 1)]
        session = model.session()
        model(torch.tensor([ids]), past_key_values=session)
        again = ask(scheduler, rewritten)
        assert again.cached_tokens == 20 and again.tokens == alone(model, rewritten, 4, session=session)


def test_a_mark_is_where_a_later_turn_may_differ(model: Any) -> None:
    with Scheduler(model, rows=2) as scheduler:
        ids = prompt(20)
        assert ask(scheduler, ids, marks=[13]).tokens == alone(model, ids, 4, cuts=[13])
        other = [*ids[:13], *prompt(6, 3)]
        answer = ask(scheduler, other, marks=[13])
        assert answer.cached_tokens == 13 and answer.tokens == alone(model, other, 4, cuts=[13])


def test_what_many_share_is_read_once(model: Any) -> None:
    system = prompt(24, 9)
    with Scheduler(model, rows=4) as scheduler:
        pool = WatchedPool(scheduler)
        texts = [system + prompt(5, n) for n in range(8)]
        answers = [
            scheduler.submit(ids, max_new_tokens=3, name=str(n), shared=24) for n, ids in enumerate(texts)
        ]
        written = [answer.result(30) for answer in answers]
    assert written == [alone(model, ids, 3, cuts=[24]) for ids in texts]
    assert len(pool.tokens_read) == 24 + 8 * 5 and [a.cached_tokens for a in answers] == [0] + [24] * 7


def test_conversations_beyond_memory_come_back_from_disk(model: Any) -> None:
    row = model.pool(1).nbytes
    sessions = [model.session() for _ in range(5)]
    texts = [prompt(15, n) for n in range(5)]
    with Scheduler(model, rows=1, memory=5 * row) as scheduler:
        for _ in range(3):
            for n, ids in enumerate(texts):
                answer = ask(scheduler, ids)
                assert answer.tokens == alone(model, ids, 4, session=sessions[n])
                texts[n] = ids + answer.tokens + prompt(3, n)
                assert scheduler.nbytes <= 3 * row
        assert answer.cached_tokens == 15 + 4 - 1 + 1 + 3 + 4 - 1 and scheduler.disk_nbytes > 0


def test_a_secret_stays_in_its_conversation(model: Any) -> None:
    """Whatever else has been read before, an answer is a function of the request's own ids."""
    secret, question = prompt(12, 1), prompt(6, 2)
    beginnings = [[], secret[:6], secret[:11], [*secret[:5], 52 - secret[5]]]
    with Scheduler(model, rows=2) as fresh:
        wanted = [ask(fresh, start + question, name=str(n)).tokens for n, start in enumerate(beginnings)]
    with Scheduler(model, rows=2) as scheduler:
        ask(scheduler, secret + question, name="told", marks=[12, 18])
        ask(scheduler, secret + question, name="told")
        for n, start in enumerate(beginnings):
            answer = ask(scheduler, start + question)
            assert answer.tokens == wanted[n] and answer.cached_tokens == 0
        whole = ask(scheduler, secret + question + [1], name="another")
        assert whole.cached_tokens == 0


def test_a_cancelled_answer_is_kept_as_far_as_it_was_read(model: Any) -> None:
    with Scheduler(model, rows=1) as scheduler:
        ids, answer = prompt(10), scheduler.submit(prompt(10), max_new_tokens=10**6)
        for _, token in zip(range(5), answer, strict=False):
            assert token >= 0
        answer.cancel()
        written = answer.result(30)
        again = ask(scheduler, ids + written + prompt(2, 1))
        assert again.cached_tokens == 10 + len(written) - 1


def test_a_conversation_goes_on_in_another_process(model: Any, tmp_path: Path) -> None:
    """As after a restart, or on another machine that sees the folder: where the last turn ended."""
    session, ids = model.session(), prompt(40)
    for turn in range(2):
        with Scheduler(model, rows=1, folder=tmp_path) as scheduler:
            answer = ask(scheduler, ids)
        assert answer.cached_tokens == (43 if turn else 0)
        assert answer.tokens == alone(model, ids, 4, session=session)
        ids = ids + answer.tokens + prompt(3, turn)
