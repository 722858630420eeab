"""On a GPU a full store's steps are replayed, and say what the eager graphs say on a processor."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from rows import padded, text
from tiny import FAMILIES
from torch import nn

import qfpass
from qfpass.errors import QFPassError
from qfpass.runtime import cuda_graph
from qfpass.runtime.cuda_graph import CudaGraphs
from qfpass.runtime.stores import Stores

SETTINGS: dict[str, Any] = {
    "budget": 24, "context_length": 128, "chunk": 9, "recent": 6, "score": "recency", "verify": False,
}  # fmt: skip
PROMPT, STEPS = 40, 12


def needs_gpu(test: Callable[..., None]) -> Callable[..., None]:
    """A test that runs on a GPU alone."""
    return pytest.mark.cuda(
        pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")(test)
    )


class StandIn:
    """A graph that is called instead of captured."""

    made = 0

    def __init__(self, call: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> None:
        StandIn.made += 1
        self._call = call

    def replay(self, inputs: Sequence[torch.Tensor]) -> Any:
        return self._call(*inputs)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> CudaGraphs:
    """As on a GPU, of one weight."""
    monkeypatch.setattr(cuda_graph, "_Graph", StandIn)
    StandIn.made = 0
    return CudaGraphs(torch.device("cuda"), [nn.Parameter(torch.ones(2))], {})


def test_a_call_is_captured_when_it_comes_again(graphs: CudaGraphs) -> None:
    prepared, stores, x = [], Stores(), torch.ones(1)

    def prepare() -> Callable[[torch.Tensor], torch.Tensor]:
        prepared.append(1)
        return lambda x: x + 1

    for _ in range(4):
        assert graphs.run("step", prepare, stores, x) == 2
    assert (len(prepared), StandIn.made, len(graphs)) == (2, 1, 1)
    graphs.run("watch", prepare, stores, x)
    graphs.run("step", prepare, Stores(), x)
    assert (len(prepared), len(graphs)) == (4, 1)  # of another kind, of another session: first calls
    del stores
    assert len(graphs) == 0


def test_a_weight_that_moves_makes_graphs_void(graphs: CudaGraphs) -> None:
    stores, x = Stores(), torch.ones(1)
    for _ in range(2):
        graphs.run("step", lambda: torch.neg, stores, x)
    assert len(graphs) == 1
    graphs._weights[0].data = torch.zeros(2)
    graphs.run("step", lambda: torch.neg, stores, x)
    assert len(graphs) == 0


@pytest.mark.parametrize(("device", "options"), [("cpu", {}), ("cuda", {"triton.cudagraphs": False})])
def test_on_a_processor_or_unwanted_calls_are_made(device: str, options: dict[str, Any]) -> None:
    graphs, stores = CudaGraphs(torch.device(device), [], options), Stores()
    for _ in range(3):
        assert graphs.run("step", lambda: torch.neg, stores, torch.ones(1)) == -1
    assert len(graphs) == 0


def test_what_cannot_be_captured_is_said(graphs: CudaGraphs, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, call: Any, inputs: Any) -> None:
        raise RuntimeError("CUDA error: operation not permitted\nmore")

    monkeypatch.setattr(StandIn, "__init__", fail)
    stores = Stores()
    graphs.run("step", lambda: torch.neg, stores, torch.ones(1))
    with pytest.raises(QFPassError, match=r"not permitted\. Compile with .*cudagraphs"):
        graphs.run("step", lambda: torch.neg, stores, torch.ones(1))


def pair(family: str = "llama", **settings: Any) -> tuple[nn.Module, nn.Module]:
    """The same weights compiled for the GPU and, eagerly, for the processor."""
    build, chosen = FAMILIES[family], SETTINGS | settings
    lowered = qfpass.compile(build(layers=3).cuda(), **chosen)
    return lowered, qfpass.compile(build(layers=3), backend="eager", **chosen)


@torch.no_grad()
def stream(model: nn.Module, ids: torch.Tensor, session: qfpass.Session) -> torch.Tensor:
    """Logits of ids [B, S], the prompt at once and then token by token."""
    device = next(model.parameters()).device
    pieces = [ids[:, :PROMPT], *ids[:, PROMPT:].split(1, dim=1)]
    calls = [model(piece.to(device), past_key_values=session).logits for piece in pieces]
    return torch.cat(calls, dim=1).cpu()


@needs_gpu
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gpt2"])
def test_replayed_steps_equal_eager_ones(family: str) -> None:
    lowered, eager = pair(family)
    session, ids = lowered.session(), text(PROMPT + STEPS)
    actual, expected = stream(lowered, ids, session), stream(eager, ids, eager.session())
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
    assert len(lowered.qfpass_decoder.graphs) == 2  # the step, and what it overwrites
    assert session.tokens_seen == PROMPT + STEPS


@needs_gpu
def test_stores_in_eight_bits_and_rows_of_their_own() -> None:
    lowered, eager = pair(store_dtype=torch.int8)
    ids = torch.cat([text(PROMPT + STEPS, seed) for seed in range(3)])
    actual = stream(lowered, ids, lowered.session())
    torch.testing.assert_close(actual, stream(eager, ids, eager.session()), rtol=2e-2, atol=2e-2)


@needs_gpu
def test_padded_prompts_go_on_as_they_would_alone() -> None:
    lowered, eager = pair()
    prompt = padded([text(30, 1), text(48, 2)], "left")
    written = lowered.generate(**{k: v.cuda() for k, v in prompt.items()}, max_new_tokens=10, do_sample=False)
    expected = eager.generate(**prompt, max_new_tokens=10, do_sample=False)
    assert written.tolist() == expected.tolist()


@needs_gpu
def test_sessions_have_graphs_of_their_own_and_may_be_reset() -> None:
    lowered, eager = pair()
    texts = [text(PROMPT + STEPS, seed) for seed in range(2)]
    sessions = [lowered.session() for _ in texts]
    expected = [stream(eager, ids, eager.session()) for ids in texts]
    for _ in range(2):
        for ids, session, wanted in zip(texts, sessions, expected, strict=True):
            torch.testing.assert_close(stream(lowered, ids, session), wanted, rtol=1e-3, atol=1e-3)
            session.reset()
    assert len(lowered.qfpass_decoder.graphs) == 4
    del sessions, session
    assert len(lowered.qfpass_decoder.graphs) == 0


@needs_gpu
@torch.no_grad()
def test_weights_that_move_or_change_are_seen() -> None:
    lowered, eager = pair()
    session, ids = lowered.session(), text(PROMPT + STEPS)
    stream(lowered, ids, session)
    for model in (lowered, eager):
        for parameter in model.parameters():
            parameter.data = parameter.data * 1.1
    session.reset()
    torch.testing.assert_close(
        stream(lowered, ids, session), stream(eager, ids, eager.session()), rtol=1e-3, atol=1e-3
    )
