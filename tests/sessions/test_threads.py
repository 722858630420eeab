"""Several threads: calls follow one another, and a session belongs to one thread at a time."""

import copy
import pickle
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from bounded import CONTEXT, compiled, llama
from decoders import text
from torch import nn
from transformers import StoppingCriteria, StoppingCriteriaList

import qfpass
from qfpass.errors import CancelledError, SessionError

THREADS = 8


def endless() -> nn.Module:
    """A model that writes no end of text."""
    model = llama()
    model.generation_config.eos_token_id = None
    return model


def in_threads(work: Callable[[int], Any]) -> list[Any]:
    """work(0), work(1), ... begun at once."""
    ready = threading.Barrier(THREADS)

    def begin(number: int) -> Any:
        ready.wait()
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begin, range(THREADS)))


def wait_until(holds: Callable[[], bool]) -> None:
    """Return once `holds()`; fails after a minute."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_threads_that_start_together_compile_once_and_write_what_one_writes() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append(graph)
        return graph.forward

    model = qfpass.compile(endless(), budget=16, chunk=8, score="recency", backend=backend)
    prompts = [text(3 + 2 * n, seed=n) for n in range(THREADS)]

    def write(number: int) -> list[int]:
        session = model.session()
        out = model.generate(prompts[number], max_new_tokens=12, do_sample=False, past_key_values=session)
        out = model.generate(out, max_new_tokens=6, do_sample=False, past_key_values=session.fork())
        assert session.tokens_seen == prompts[number].shape[1] + 11
        return out[0].tolist()

    together = in_threads(write)
    assert len(graphs) == 3
    assert together == [write(number) for number in range(THREADS)]
    assert len(graphs) == 3


class Held(StoppingCriteria):
    """Stops a generation at its third token until it is let go."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()
        self.tokens = 0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.tokens += 1
        if self.tokens == 3:
            self.reached.set()
            assert self.go_on.wait(60)
        return torch.zeros(len(input_ids), dtype=torch.bool)


def test_a_session_in_use_by_another_thread_is_refused(tmp_path: Any) -> None:
    model, held = compiled(endless()), Held()
    session, ids = model.session(), text(6)
    settings: dict[str, Any] = {"max_new_tokens": 9, "do_sample": False}
    uses: list[Callable[[], Any]] = [
        lambda: model(text(1), past_key_values=session),
        lambda: model.generate(ids, past_key_values=session, **settings),
        session.reset, session.fork, lambda: session.save(tmp_path / "s"),
        lambda: session.load(tmp_path / "s"),
        lambda: session.reorder_cache(torch.tensor([0])), lambda: copy.deepcopy(session),
    ]  # fmt: skip
    with ThreadPoolExecutor(1) as pool:
        criteria = StoppingCriteriaList([held])
        writing = pool.submit(
            model.generate, ids, past_key_values=session, stopping_criteria=criteria, **settings
        )
        assert held.reached.wait(60)
        try:
            for use in uses:
                with pytest.raises(SessionError, match="in use by another thread"):
                    use()
            other = model(ids).logits  # a session of its own goes on meanwhile
        finally:
            held.go_on.set()
        made = writing.result()
    assert made.tolist() == model.generate(ids, **settings).tolist()
    assert torch.equal(other, model(ids).logits)
    assert session.tokens_seen == 14 < CONTEXT


class Listening:
    """A backend whose graphs call `heard` before they run."""

    def __init__(self) -> None:
        self.heard: Callable[[], Any] = lambda: None

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        def run(*args: Any) -> Any:
            self.heard()
            return graph.forward(*args)

        return run


def test_steps_of_others_get_their_turn_between_the_chunks_of_a_prompt() -> None:
    backend, calls, step_read = Listening(), list[int](), threading.Event()
    model = qfpass.compile(endless(), budget=16, chunk=8, score="recency", backend=backend)
    prompt, other = text(CONTEXT), model.session()
    expected = model(prompt, logits_to_keep=1).logits
    model(text(20, seed=1), past_key_values=other)
    model(text(1, seed=2), past_key_values=other.fork())  # compiles the step

    def step() -> None:
        model(text(1, seed=2), past_key_values=other)
        step_read.set()

    def heard() -> None:
        calls.append(threading.get_ident())
        if len(calls) == 1:
            stepping.start()
            wait_until(model.qfpass_decoder._lock._next.locked)  # the step waits for its turn

    stepping = threading.Thread(target=step)
    backend.heard = heard
    read = model(prompt, logits_to_keep=1).logits
    assert step_read.wait(60)
    stepping.join()
    assert torch.equal(read, expected)
    # Every chunk, the head, and among them the step, at once after the chunk that it waited for.
    assert calls.index(stepping.ident or 0) == 1
    assert len(calls) > 3


def test_a_prompt_is_cancelled_between_chunks_and_put_back() -> None:
    backend, calls = Listening(), list[bool]()
    model = qfpass.compile(endless(), budget=16, chunk=8, score="recency", backend=backend)
    session, more = model.session(), text(28, seed=1)
    model(text(20), past_key_values=session)
    expected = model(more, past_key_values=session.fork()).logits
    before = session.fork()
    backend.heard = lambda: calls.append(len(calls) == 2 and session.cancel())
    with pytest.raises(CancelledError, match="stands where it stood"):
        model(more, past_key_values=session)
    backend.heard = lambda: None
    assert calls == [False, False, True, False]  # two chunks, of each its body and head
    assert session.tokens_seen == 20
    for mine, same in zip(session.stores, before.stores, strict=True):
        assert all(map(torch.equal, mine, same))
    assert torch.equal(model(more, past_key_values=session).logits, expected)


def test_generate_is_cancelled_between_tokens_and_keeps_what_it_wrote() -> None:
    model: Any = compiled(endless())
    session, ids = model.session(), text(6)
    settings: dict[str, Any] = {"max_new_tokens": 9, "do_sample": False}
    whole = model.generate(ids, **settings)

    class Cancels(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            if input_ids.shape[1] == 9:
                assert session.cancel()
            return torch.zeros(len(input_ids), dtype=torch.bool)

    with pytest.raises(CancelledError):
        model.generate(
            ids, past_key_values=session, stopping_criteria=StoppingCriteriaList([Cancels()]), **settings
        )
    assert session.tokens_seen == 8
    assert not session.cancel()  # nobody reads: the next call goes on
    out = model.generate(whole[:, :9], past_key_values=session, max_new_tokens=6, do_sample=False)
    assert out.tolist() == whole.tolist()


def test_a_copy_is_a_fork_and_a_pickle_is_refused() -> None:
    model: nn.Module = compiled(llama())
    session = model.session()
    model(text(20), past_key_values=session)
    twin, more = copy.deepcopy(session), text(3, seed=1)
    assert torch.equal(*(model(more, past_key_values=s).logits for s in (session, twin)))
    with pytest.raises(SessionError, match=r"save\(path\)"):
        pickle.dumps(session)
