"""A full store's steps are replayed, and say what the eager graphs say."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from often import often
from rows import padded, text
from tiny import FAMILIES
from torch import nn

import qfpass
from qfpass.errors import QFPassError
from qfpass.lowering import replays
from qfpass.lowering.cuda_replay import CudaGraph
from qfpass.lowering.replays import CUDA_GRAPHS, Replays
from qfpass.sessions.stores import Stores
from qfpass.upstream import cublas

SETTINGS: dict[str, Any] = {
    "budget": 24, "context_length": 128, "chunk": 9, "recent": 6, "score": "recency", "verify": False,
}  # fmt: skip
PROMPT, STEPS = 40, 12


DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
        ],
    ),
]
on_every_device = pytest.mark.parametrize("device", DEVICES)


class StandIn:
    """A call that is made again instead of replayed."""

    made, is_replayable, why_not = 0, True, None

    def __init__(self, call: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> None:
        StandIn.made += 1
        self._call, self._inputs = call, inputs

    def first(self) -> Any:
        return self._call(*self._inputs)

    def replay(self, inputs: Sequence[torch.Tensor]) -> Any:
        return self._call(*inputs)


@pytest.fixture
def standing_in(monkeypatch: pytest.MonkeyPatch) -> Replays:
    """As on a GPU, of one weight."""
    monkeypatch.setattr(replays, "CudaGraph", StandIn)
    StandIn.made = 0
    return Replays(torch.device("cuda"), [nn.Parameter(torch.ones(2))], {})


def test_a_call_is_recorded_when_it_comes_again(standing_in: Replays) -> None:
    prepared, stores, x = [], Stores(), torch.ones(1)

    def prepare() -> Callable[[torch.Tensor], torch.Tensor]:
        prepared.append(1)
        return lambda x: x + 1

    for _ in range(4):
        assert standing_in.run("step", prepare, stores, x) == 2
    assert (len(prepared), StandIn.made, len(standing_in)) == (2, 1, 1)
    assert standing_in.why_not("step") is None
    assert standing_in.why_not("watch") == "none on full stores has come twice yet"
    standing_in.run("watch", prepare, stores, x)
    standing_in.run("step", prepare, Stores(), x)
    assert (len(prepared), len(standing_in)) == (4, 1)  # of another kind, of another session: first calls
    del stores
    assert len(standing_in) == 0


def test_a_weight_that_moves_makes_replays_void(standing_in: Replays) -> None:
    stores, x = Stores(), torch.ones(1)
    for _ in range(2):
        standing_in.run("step", lambda: torch.neg, stores, x)
    assert len(standing_in) == 1
    standing_in._weights[0].data = torch.zeros(2)
    standing_in.run("step", lambda: torch.neg, stores, x)
    assert len(standing_in) == 0


@pytest.mark.parametrize(("device", "options"), [("cpu", {}), ("cuda", {"triton.cudagraphs": False})])
def test_what_has_no_kernels_or_is_unwanted_is_called(device: str, options: dict[str, Any]) -> None:
    made, stores = Replays(torch.device(device), [], options), Stores()
    for n in range(4):
        assert made.run("step", lambda: torch.neg, stores, torch.full((1,), n)) == -n
    assert len(made) == 0
    assert made.why_not("step") == (
        "no generated code ran" if device == "cpu" else f"{CUDA_GRAPHS} is turned off"
    )


def test_replays_may_be_unwanted() -> None:
    made, stores = Replays(torch.device("cpu"), [], {}, wanted=False), Stores()
    assert [made.run("step", lambda: torch.neg, stores, torch.ones(1)) for _ in range(3)] == [-1] * 3
    assert made.why_not("step") == "it is turned off"


def test_what_cannot_be_captured_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def fail(*_: Any, **__: Any) -> Iterator[None]:
        raise RuntimeError("CUDA error: operation not permitted\nmore")
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: None)
    monkeypatch.setattr(torch.cuda, "graph", fail)
    monkeypatch.setattr(cublas, "free_workspaces", lambda: None)
    with pytest.raises(QFPassError, match=r"not permitted\. Compile with .*cudagraphs"):
        CudaGraph(torch.neg, [torch.ones(1)])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_replay_needs_no_memory_of_another() -> None:
    """torch.compile's own CUDA graphs free cuBLAS's workspaces, which graphs captured before may not read."""
    dtype = torch.bfloat16
    weight, x = (torch.randn(n, 4096, device="cuda", dtype=dtype) / 64 for n in (4096, 1))
    of_another, own = (CudaGraph(lambda x: x @ weight, [x]) for _ in range(2))
    of_another.first()
    del of_another
    cublas.free_workspaces()
    torch.cuda.empty_cache()
    others = [torch.full((2**20,), float("nan"), device="cuda") for _ in range(64)]
    torch.testing.assert_close(own.replay([x]), x @ weight)
    assert all(other.isnan().all() for other in others)


def pair(device: str, family: str = "llama", **settings: Any) -> tuple[nn.Module, nn.Module]:
    """The same weights lowered for a device and, eagerly, for the processor."""
    build, chosen = FAMILIES[family], SETTINGS | settings
    lowered = qfpass.compile(build(layers=3).to(device), **chosen)
    return lowered, qfpass.compile(build(layers=3), backend="eager", **chosen)


@torch.no_grad()
def stream(model: nn.Module, ids: torch.Tensor, session: qfpass.Session) -> torch.Tensor:
    """Logits of ids [B, S], the prompt at once and then token by token."""
    device = next(model.parameters()).device
    pieces = [ids[:, :PROMPT], *ids[:, PROMPT:].split(1, dim=1)]
    calls = [model(piece.to(device), past_key_values=session).logits for piece in pieces]
    return torch.cat(calls, dim=1).cpu()


@on_every_device
@pytest.mark.parametrize("family", often({"llama", "gpt2"}, ["llama", "qwen3", "gemma3", "gpt2"]))
def test_replayed_steps_equal_eager_ones(device: str, family: str) -> None:
    lowered, eager = pair(device, family)
    session, ids = lowered.session(), text(PROMPT + STEPS)
    actual, expected = stream(lowered, ids, session), stream(eager, ids, eager.session())
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)
    assert len(lowered.qfpass_decoder.replays) == 1
    assert session.tokens_seen == PROMPT + STEPS


@pytest.mark.slow
@on_every_device
def test_stores_in_eight_bits_and_rows_of_their_own(device: str) -> None:
    lowered, eager = pair(device, store_dtype=torch.int8)
    ids = torch.cat([text(PROMPT + STEPS, seed) for seed in range(3)])
    actual = stream(lowered, ids, lowered.session())
    torch.testing.assert_close(actual, stream(eager, ids, eager.session()), rtol=2e-2, atol=2e-2)


@on_every_device
def test_padded_prompts_go_on_as_they_would_alone(device: str) -> None:
    lowered, eager = pair(device)
    prompt = padded([text(30, 1), text(48, 2)], "left")
    written = lowered.generate(
        **{k: v.to(device) for k, v in prompt.items()}, max_new_tokens=10, do_sample=False
    )
    expected = eager.generate(**prompt, max_new_tokens=10, do_sample=False)
    assert written.tolist() == expected.tolist()


@on_every_device
def test_sessions_have_replays_of_their_own_and_may_be_reset(device: str) -> None:
    lowered, eager = pair(device)
    texts = [text(PROMPT + STEPS, seed) for seed in range(2)]
    sessions = [lowered.session() for _ in texts]
    expected = [stream(eager, ids, eager.session()) for ids in texts]
    for _ in range(2):
        for ids, session, wanted in zip(texts, sessions, expected, strict=True):
            torch.testing.assert_close(stream(lowered, ids, session), wanted, rtol=1e-3, atol=1e-3)
            session.reset()
    assert len(lowered.qfpass_decoder.replays) == 2
    del sessions, session
    assert len(lowered.qfpass_decoder.replays) == 0


@on_every_device
@torch.no_grad()
def test_weights_that_move_or_change_are_seen(device: str) -> None:
    lowered, eager = pair(device)
    session, ids = lowered.session(), text(PROMPT + STEPS)
    stream(lowered, ids, session)
    for model in (lowered, eager):
        for parameter in model.parameters():
            parameter.data = parameter.data * 1.1
    session.reset()
    torch.testing.assert_close(
        stream(lowered, ids, session), stream(eager, ids, eager.session()), rtol=1e-3, atol=1e-3
    )
