"""Many requests at once: each is answered as alone, in bounded memory, and waits no longer than it must."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from served import alone, prompt, served_model
from watched_pool import WatchedPool

from qfpass.errors import ClosedError, ConfigError, DeadlineError, InputError, QueueFullError
from qfpass.serving import Sampling, Scheduler


@pytest.fixture(scope="module")
def model() -> Any:
    return served_model()


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_requests_together_are_answered_as_alone(model: Any) -> None:
    settings = [Sampling(), Sampling(temperature=0.8, top_p=0.9, seed=3), Sampling(repetition_penalty=1.4)]
    asked = [(prompt(3 + 5 * n, n), settings[n % 3], 4 + n) for n in range(8)]
    with Scheduler(model, rows=3, memory=None) as scheduler:
        answers = [scheduler.submit(ids, how, max_new_tokens=most) for ids, how, most in asked]
        written = [answer.result(30) for answer in answers]
    assert written == [alone(model, ids, most, how) for ids, how, most in asked]
    assert {answer.finish_reason for answer in answers} == {"length"}


def test_live_rows_step_in_one_call(model: Any) -> None:
    with Scheduler(model, rows=4, prompt_share=1.0) as scheduler:
        pool = WatchedPool(scheduler, "step")
        answers = [scheduler.submit(prompt(5, n), max_new_tokens=12) for n in range(4)]
        wait_until(lambda: pool.waiting == 1)
        pool.is_open = True
        for answer in answers:
            answer.result(30)
        assert max(map(len, pool.steps)) == 4


def test_no_row_waits_for_more_than_one_chunk(model: Any) -> None:
    with Scheduler(model, rows=3, prompt_share=1.0) as scheduler:
        pool = WatchedPool(scheduler)
        first = scheduler.submit(prompt(2), max_new_tokens=40)
        wait_until(lambda: len(first.tokens) > 1)
        pool.calls.clear()
        others = [scheduler.submit(prompt(40, n), max_new_tokens=1) for n in range(1, 6)]
        for answer in (*others, first):
            answer.result(30)
    while_both = "".join(name[0] for name in pool.calls).rstrip("s")
    assert while_both.count("r") >= 5 and "rr" not in while_both


def test_a_small_share_lets_many_steps_in_between(model: Any) -> None:
    with Scheduler(model, rows=2, prompt_share=0.02) as scheduler:
        first = scheduler.submit(prompt(2), max_new_tokens=40)
        wait_until(lambda: len(first.tokens) > 1)
        second = scheduler.submit(prompt(40, 1), max_new_tokens=1)
        first.result(30)
        assert not second.tokens
        assert second.result(30) == alone(model, prompt(40, 1), 1)


def test_an_answer_ends_at_a_stop_token(model: Any) -> None:
    ids = prompt(9)
    written = alone(model, ids, 10)
    stop = written[4]
    with Scheduler(model, rows=1) as scheduler:
        answer = scheduler.submit(ids, max_new_tokens=10, stop={stop})
        assert answer.result(30) == written[: written.index(stop) + 1]
        assert answer.finish_reason == "stop"


def test_an_answer_ends_with_the_context(model: Any) -> None:
    with Scheduler(model, rows=1) as scheduler:
        answer = scheduler.submit(prompt(44), max_new_tokens=1000)
        assert len(answer.result(30)) == 5 and answer.finish_reason == "length"
        with pytest.raises(InputError, match="the prompt has 49 tokens, and the context 48"):
            scheduler.submit(prompt(49))


@pytest.mark.parametrize("during", ["the queue", "the prompt", "the answer"])
def test_a_cancelled_request_ends_within_one_call(model: Any, during: str) -> None:
    with Scheduler(model, rows=1) as scheduler:
        pool = WatchedPool(scheduler, "read", "step")
        before = scheduler.submit(prompt(4), max_new_tokens=40) if during == "the queue" else None
        answer = scheduler.submit(prompt(40), max_new_tokens=1000)
        wait_until(lambda: pool.waiting == 1)
        if during == "the answer":
            for _ in range(6):
                pool.turns.release()
            wait_until(lambda: len(answer.tokens) == 2)
        answer.cancel()
        pool.turns.release()
        if before is None:
            wait_until(lambda: scheduler.rows_in_use == 0)
        assert answer.result(30) == alone(model, prompt(40), 4)[: len(answer.tokens)]
        assert answer.finish_reason == "cancelled"
        pool.is_open = True
        after = scheduler.submit(prompt(7, 2), max_new_tokens=3)
        assert after.result(30) == alone(model, prompt(7, 2), 3)


def test_a_deadline_ends_a_request_wherever_it_is(model: Any) -> None:
    with Scheduler(model, rows=1) as scheduler:
        pool = WatchedPool(scheduler, "step")
        first = scheduler.submit(prompt(4), max_new_tokens=40, deadline=0.05)
        second = scheduler.submit(prompt(4), max_new_tokens=40, deadline=0.05)
        wait_until(lambda: pool.waiting == 1)
        time.sleep(0.06)
        pool.is_open = True
        for answer in (first, second):
            with pytest.raises(DeadlineError, match="at its deadline"):
                answer.result(30)
        assert first.tokens and not second.tokens and first.finish_reason is None


def test_a_full_queue_refuses_and_says_when_to_come_again(model: Any) -> None:
    with Scheduler(model, rows=1, queue=2) as scheduler:
        pool = WatchedPool(scheduler, "read")
        answers = [scheduler.submit(prompt(4), max_new_tokens=2)]
        wait_until(lambda: pool.waiting == 1)
        answers += [scheduler.submit(prompt(4), max_new_tokens=2) for _ in range(2)]
        with pytest.raises(QueueFullError, match="2 requests wait already") as refused:
            scheduler.submit(prompt(4))
        assert refused.value.retry_after >= 1
        pool.is_open = True
        assert {tuple(answer.result(30)) for answer in answers} == {tuple(alone(model, prompt(4), 2))}


def test_closing_lets_running_answers_end(model: Any) -> None:
    scheduler = Scheduler(model, rows=1)
    answers = [scheduler.submit(prompt(4, n), max_new_tokens=20) for n in range(3)]
    scheduler.close()
    assert [answer.tokens for answer in answers] == [alone(model, prompt(4, n), 20) for n in range(3)]
    with pytest.raises(ClosedError):
        scheduler.submit(prompt(4))


def test_closing_cancels_what_is_left_at_its_timeout(model: Any) -> None:
    scheduler = Scheduler(model, rows=1)
    pool = WatchedPool(scheduler, "step")
    answers = [scheduler.submit(prompt(4, n), max_new_tokens=20) for n in range(3)]
    wait_until(lambda: pool.waiting == 1)
    threading.Timer(0.2, pool.turns.release).start()
    scheduler.close(timeout=0.05)
    assert [answer.finish_reason for answer in answers] == ["cancelled"] * 3


def test_a_failing_step_ends_its_answers_and_no_others(model: Any) -> None:
    with Scheduler(model, rows=2) as scheduler:
        pool = WatchedPool(scheduler)

        def failing() -> None:
            pool.before = lambda: None
            raise MemoryError("no memory")

        pool.before = failing
        with pytest.raises(MemoryError, match="no memory"):
            scheduler.submit(prompt(4), max_new_tokens=5).result(30)
        again = scheduler.submit(prompt(4), max_new_tokens=5)
        assert again.result(30) == alone(model, prompt(4), 5)


def test_a_fault_of_the_scheduler_leaves_no_answer_waiting(model: Any) -> None:
    with Scheduler(model, rows=2) as scheduler:
        scheduler._live.step = None  # type: ignore[method-assign,assignment]
        with pytest.raises(ClosedError, match="the scheduler has ended"):
            scheduler.submit(prompt(4), max_new_tokens=5).result(30)
        with pytest.raises(ClosedError):
            scheduler.submit(prompt(4))


def test_answers_stream_to_threads_and_to_asyncio(model: Any) -> None:
    wanted = alone(model, prompt(6), 12)

    async def read(scheduler: Scheduler) -> list[list[int]]:
        async def one() -> list[int]:
            return [token async for token in scheduler.submit(prompt(6), max_new_tokens=12)]

        return await asyncio.gather(one(), one())

    with Scheduler(model, rows=2) as scheduler:
        assert list(scheduler.submit(prompt(6), max_new_tokens=12)) == wanted
        assert asyncio.run(read(scheduler)) == [wanted, wanted]


def test_memory_is_never_exceeded(model: Any) -> None:
    row = model.pool(1).nbytes
    with pytest.raises(ConfigError, match=r"holds 3 rows, not 4: lower rows"):
        Scheduler(model, rows=4, memory=5 * row)
    with Scheduler(model, rows=2, memory=7 * row, disk=0) as scheduler:
        pool, most = WatchedPool(scheduler), 0

        def leave(number: int) -> Any:
            nonlocal most
            session = pool._pool.leave(number)
            most = max(most, scheduler.nbytes + session.nbytes)
            return session

        pool.leave = leave
        for n in range(12):
            scheduler.submit(prompt(6, n), max_new_tokens=2).result(30)
        assert scheduler.nbytes == 5 * row and most <= 7 * row


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": 0}, "rows must be an integer of at least 1"),
        ({"queue": -1}, "queue must be an integer of at least 0"),
        ({"prompt_share": 0}, "prompt_share must lie between 0 and 1"),
    ],
)
def test_settings_that_cant_work_are_refused(model: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Scheduler(model, **settings)


@pytest.mark.parametrize(
    ("ids", "settings", "message"),
    [
        ([], {}, "the prompt is empty"),
        ([1, 53], {}, "ids must lie between 0 and 53"),
        ([-1], {}, "ids must lie between 0 and 53"),
        ([1], {"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ([1], {"deadline": 0.0}, "deadline must be a number of seconds"),
        ([1], {"shared": 2}, "shared and marks must lie within the 1 ids"),
        ([1], {"marks": [0]}, "shared and marks must lie within the 1 ids"),
        ([1], {"sampling": Sampling(logit_bias={53: 1.0})}, "logit_bias must name token ids"),
    ],
)
def test_requests_that_cant_be_answered_are_refused(
    model: Any, ids: list[int], settings: dict[str, Any], message: str
) -> None:
    with Scheduler(model, rows=1) as scheduler, pytest.raises(InputError, match=message):
        scheduler.submit(ids, **settings)
