"""Several threads: calls follow one another, and a session belongs to one thread at a time."""

import copy
import pickle
import threading
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
from qfpass.errors import SessionError

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


def test_a_copy_is_a_fork_and_a_pickle_is_refused() -> None:
    model: nn.Module = compiled(llama())
    session = model.session()
    model(text(20), past_key_values=session)
    twin, more = copy.deepcopy(session), text(3, seed=1)
    assert torch.equal(*(model(more, past_key_values=s).logits for s in (session, twin)))
    with pytest.raises(SessionError, match=r"save\(path\)"):
        pickle.dumps(session)
