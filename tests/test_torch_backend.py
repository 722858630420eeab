"""torch.compile(model, backend="qfpass"): the same texts as qfpass.compile, and what it refuses."""

import threading
from itertools import pairwise, product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from decoders import Decoder, causal, decoder, places, text
from often import often
from packaging.version import Version
from tiny import FAMILIES
from torch import nn

import qfpass
from qfpass.errors import (
    CaptureError,
    ConfigError,
    InputError,
    NoAttentionError,
    SessionError,
    VerificationError,
)
from qfpass.torch_backend import _open

CUTS = (0, 30, 31, 32, 50, 60)
EVICTING = {"budget": 24, "context_length": 128, "score": "recency", "backend": "eager"}


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(model: nn.Module, **options: Any) -> Any:
    return torch.compile(model, backend="qfpass", dynamic=True, options={**EVICTING, **options})


def read(model: Any, ids: torch.Tensor, cuts: tuple[int, ...], **keywords: Any) -> torch.Tensor:
    """The logits of a text read piece by piece."""
    pieces = [model(ids[:, a:b], position_ids=places(ids)[:, a:b], **keywords) for a, b in pairwise(cuts)]
    return torch.cat([getattr(piece, "logits", piece) for piece in pieces], 1)


@pytest.mark.parametrize(
    "case", often([("llama", 1), ("gemma3", 3), ("gpt2", 1)], product(["llama", "gemma3", "gpt2"], [1, 3]))
)
@torch.no_grad()
def test_a_session_reads_as_one_of_compile_does(case: tuple[str, int]) -> None:
    family, batch = case
    model = FAMILIES[family]()
    ids = torch.randint(50, (batch, 60), generator=torch.Generator().manual_seed(batch))
    expected = qfpass.compile(model, **EVICTING)
    session = expected.session()
    logits = read(lambda ids, position_ids: expected(ids, past_key_values=session), ids, CUTS)
    with qfpass.session() as opened:
        actual = read(compiled(model), ids, CUTS, use_cache=False)
    assert (opened.tokens_seen, opened.nbytes) == (60, session.nbytes)
    torch.testing.assert_close(actual, logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_lowered_by_inductor() -> None:
    model = decoder()
    ids = text(60, 2)
    with qfpass.session():
        actual = read(compiled(model, ratio=1, budget=None, backend="inductor"), ids, CUTS)
    torch.testing.assert_close(actual, model(ids, places(ids)), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_each_call_outside_a_session_is_a_text_of_its_own() -> None:
    model = decoder()
    reader, ids = compiled(model), text(20, 2)
    for length in (20, 13, 7):
        actual = reader(ids[:, :length], position_ids=places(ids)[:, :length])
        torch.testing.assert_close(actual, model(ids, places(ids))[:, :length], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_sessions_fork_and_reset() -> None:
    model = decoder()
    reader, ids = compiled(model), text(40)
    place = places(ids)
    with qfpass.session() as session:
        read(reader, ids, (0, 30))
        twin = session.fork()
        first = read(lambda x, position_ids: reader(x, position_ids=place[:, 30:40]), ids[:, 30:], (0, 10))
    with twin:
        again = read(lambda x, position_ids: reader(x, position_ids=place[:, 30:40]), ids[:, 30:], (0, 10))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    session.reset()
    assert (session.tokens_seen, twin.tokens_seen) == (0, 40)


@torch.no_grad()
def test_a_graph_that_dynamo_shares_keeps_models_apart() -> None:
    one, other = decoder(), decoder()
    with torch.no_grad():
        other.head.weight.mul_(-1)
    ids = text(20, 2)
    for model in (one, other):
        actual = compiled(model)(ids, position_ids=places(ids))
        torch.testing.assert_close(actual, model(ids, places(ids)), rtol=1e-4, atol=1e-4)
    with qfpass.session():
        compiled(one)(ids, position_ids=places(ids))
        with pytest.raises(SessionError, match="belongs to another model"):
            compiled(other)(ids, position_ids=places(ids))


class Scaled(Decoder):
    """A decoder whose argument changes what it computes."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor, twice: bool = False) -> Any:
        logits = super().forward(input_ids, position_ids)
        return 2 * logits if twice else logits


@torch.no_grad()
def test_another_computation_in_the_same_session_is_refused() -> None:
    torch.manual_seed(0)
    reader, ids = compiled(Scaled(causal).eval()), text(20)
    with qfpass.session() as session:
        reader(ids, position_ids=places(ids))
        with pytest.raises(VerificationError, match="make all calls of a session alike"):
            reader(ids, position_ids=places(ids) + 20, twice=True)
    assert session.tokens_seen == 20


class Counting(nn.Module):
    """A decoder that takes no positions."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = decoder()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.inner(ids, torch.arange(ids.shape[1], device=ids.device).expand_as(ids))


@torch.no_grad()
def test_a_model_that_counts_its_tokens_itself() -> None:
    model = Counting().eval()
    reader, ids = compiled(model, ratio=1, budget=None), text(40)
    with qfpass.session():
        actual = torch.cat([reader(ids[:, a:b]) for a, b in ((0, 30), (30, 31), (31, 40))], 1)
    torch.testing.assert_close(actual, model(ids), rtol=1e-4, atol=1e-4)


class Broken(Decoder):
    """A decoder that Dynamo traces in two pieces."""

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(input_ids) + self.places(position_ids)
        torch._dynamo.graph_break()
        return self.head(F.silu(hidden))


REFUSED: dict[str, tuple[Any, dict[str, Any], type[Exception], str]] = {
    "a cache": ({}, {}, CaptureError, "use_cache=False"),
    "a mask": ({}, {"use_cache": False, "attention_mask": torch.ones(1, 20)}, CaptureError, "attention_mask"),
    "positions that leave a gap": ({}, {"use_cache": False, "shift": 1}, InputError, "must continue from"),
    "an unknown option": ({"ratoi": 8}, {"use_cache": False}, ConfigError, "ratoi"),
    "a bad option": ({"recent": 0}, {"use_cache": False}, ConfigError, "recent"),
}


@pytest.mark.parametrize("case", REFUSED)
@torch.no_grad()
def test_refused(case: str) -> None:
    options, call, error, message = REFUSED[case]
    keywords = dict(call)
    ids = torch.randint(50, (1, keywords.pop("length", 20)))
    position = places(ids) + keywords.pop("shift", 0)
    with qfpass.session() as session, pytest.raises(error, match=message):
        compiled(FAMILIES["llama"](), **options)(ids, position_ids=position, **keywords)
    assert (session.current, session.model) == (None, None)


@torch.no_grad()
def test_what_dynamo_traced_in_pieces_is_refused() -> None:
    ids = text(20)
    with pytest.raises(NoAttentionError, match="in pieces"):
        compiled(Broken().eval())(ids, places(ids))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_graphs_of_one_length_read_through_the_module(family: str) -> None:
    """Without dynamic=True, and from a single token on."""
    model = FAMILIES[family]()
    ids = torch.randint(50, (1, 40))
    reader = torch.compile(model, backend="qfpass", options={"ratio": 1, "backend": "eager"})
    with qfpass.session() as session:
        actual = read(reader, ids, (0, 1, 2, 20, 33, 40), use_cache=False)
    assert session.tokens_seen == 40
    torch.testing.assert_close(actual, model(ids).logits, rtol=1e-3, atol=1e-3)


class Encoder(nn.Module):
    """PyTorch's own layers, causal by a mask; its forward's first argument has another name."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.tokens, self.places, self.head = nn.Embedding(53, 32), nn.Embedding(64, 32), nn.Linear(32, 53)
        self.layers = nn.TransformerEncoder(layer, 2)

    def forward(this, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:  # noqa: N805
        hidden = this.tokens(input_ids) + this.places(position_ids)
        mask = nn.Transformer.generate_square_subsequent_mask(input_ids.shape[1])
        return this.head(this.layers(hidden, mask=mask, is_causal=True))


@pytest.mark.parametrize("dynamic", [None, True])
@torch.no_grad()
def test_pytorchs_own_transformer_encoder(dynamic: bool | None) -> None:
    """With dynamic=True Dynamo leaves its layers whole, as one operator each."""
    torch.manual_seed(0)
    model, ids = Encoder().eval(), text(40)
    options = {"ratio": 1, "context_length": 64, "backend": "eager"}
    reader = torch.compile(model, backend="qfpass", dynamic=dynamic, options=options)
    if Version(torch.__version__) < Version("2.13"):
        with qfpass.session(), pytest.raises(CaptureError, match="broke its forward into several graphs"):
            read(reader, ids, (0, 1, 2, 20, 33, 40))
        return
    with qfpass.session() as session:
        actual = read(reader, ids, (0, 1, 2, 20, 33, 40))
    assert session.tokens_seen == 40
    torch.testing.assert_close(actual, model(ids, places(ids)), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_function_around_a_model_is_refused() -> None:
    model, ids = decoder(), text(20)
    reader = torch.compile(lambda x, position_ids: model(x, position_ids), backend="qfpass", options=EVICTING)
    with pytest.raises(CaptureError, match="compile the module itself"):
        reader(ids, position_ids=places(ids))


@torch.no_grad()
def test_a_sessions_budget_and_threads_of_their_own() -> None:
    model, ids = decoder(), text(40)
    reader, seen = compiled(model), list[bool]()
    with qfpass.session(budget=16) as session:
        read(reader, ids, (0, 30))
        thread = threading.Thread(target=lambda: seen.append(_open.get() is None))
        thread.start()
        thread.join()
    assert session.current is not None and session.current.slots == 16
    assert (session.tokens_seen, seen) == (30, [True])
