"""Models whose stores hold eight bits: sizes, numbers, sessions, and what is refused."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from bounded import graphs_of_one_batch
from decoders import HEAD_DIM, KV_HEADS, decoder, places, text, within

import qfpass
from qfpass.errors import ConfigError, SessionError

CONTEXT, LAYERS = 80, 2
FLOAT_BYTES = 2 * HEAD_DIM * 4 + 8  # key, value, score and position of one head's slot
INT8_BYTES = 2 * HEAD_DIM + 2 * 4 + 8
MODEL = decoder(layers=LAYERS)


def compiled(model: torch.nn.Module = MODEL, backend: str = "eager", **settings: Any) -> Any:
    chosen = {"context_length": CONTEXT, "score": "knorm", "store_dtype": torch.int8}
    return qfpass.compile(model, backend=backend, **{**chosen, **settings})


def read(model: Any, ids: torch.Tensor, ends: tuple[int, ...], session: Any = None) -> torch.Tensor:
    session = session or model.session()
    return torch.cat([model(ids[:, a:b], past_key_values=session) for a, b in pairwise(ends)], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_a_ratio_is_of_bytes(dtype: torch.dtype) -> None:
    model = decoder(layers=LAYERS).to(dtype)
    for ratio in (4, 8):
        sessions = [
            compiled(model, ratio=ratio, store_dtype=d, recent=2).session() for d in (torch.int8, None)
        ]
        for session in sessions:
            session.allocate(1)
        small, own = sessions
        assert small.slots > own.slots
        a_slot = LAYERS * KV_HEADS * INT8_BYTES
        assert own.nbytes - a_slot < small.nbytes < own.nbytes + a_slot
        assert small.kv_nbytes == LAYERS * KV_HEADS * small.slots * (INT8_BYTES - 8)
        report = qfpass.report(compiled(model, ratio=ratio, recent=2))
        assert report.nbytes == small.kv_nbytes
        assert report.full_nbytes == LAYERS * KV_HEADS * CONTEXT * 2 * HEAD_DIM * dtype.itemsize


@torch.no_grad()
def test_every_key_in_eight_bits_changes_little() -> None:
    whole, ids = compiled(), text(60, 2)
    session = whole.session()
    out = read(whole, ids, (0, 20, 21, 22, 50, 60), session)
    torch.testing.assert_close(out, MODEL(ids, places(ids)), rtol=0, atol=0.03)
    assert session.nbytes == 2 * LAYERS * KV_HEADS * CONTEXT * INT8_BYTES


@pytest.mark.slow
@torch.no_grad()
def test_lowered_by_inductor_it_is_the_same() -> None:
    ids, ends = text(60, 2), (0, 11, 12, 13, 14, 40, 41, 42, 60)
    lowered, eager = (compiled(budget=16, recent=4, backend=b) for b in ("inductor", "eager"))
    torch.testing.assert_close(read(lowered, ids, ends), read(eager, ids, ends), rtol=1e-4, atol=1e-4)
    assert qfpass.report(lowered).graphs_compiled == graphs_of_one_batch(lowered)


@torch.no_grad()
def test_windows_and_skipped_layers_stay_in_the_models_dtype() -> None:
    mixed = decoder([within(7), within(CONTEXT + 9)], layers=2)
    session = compiled(mixed, budget=16, recent=4).session()
    read(compiled(mixed, budget=16, recent=4), text(9), (0, 9))
    session.allocate(1)
    assert [store.keys.dtype for store in session.stores] == [torch.float32, torch.int8]
    skipping = compiled(budget=16, recent=4, skip_layers=(0,)).session()
    skipping.allocate(1)
    assert [store.keys.dtype for store in skipping.stores] == [torch.float32, torch.int8]


@torch.no_grad()
def test_sessions_are_saved_forked_and_put_back(tmp_path: Path) -> None:
    model, ids = compiled(budget=16, recent=4), text(50)
    session = model.session()
    read(model, ids, (0, 30), session)
    session.save(tmp_path / "session")
    rest = (30, 31, 50)
    fork, loaded = session.fork(), model.session().load(tmp_path / "session")
    outputs = [read(model, ids, rest, each) for each in (session, fork, loaded)]
    for out in outputs[1:]:
        torch.testing.assert_close(out, outputs[0], rtol=0, atol=0)
    other = compiled(budget=16, recent=4, store_dtype=None)
    with pytest.raises(SessionError, match="differs from this model in its stores"):
        other.session().load(tmp_path / "session")


def test_refused() -> None:
    for settings, message in (
        ({"store_dtype": torch.float16}, "store_dtype must be 'auto', torch.int8"),
        ({"store_dtype": "int8-int4"}, "groups of 32 numbers, and a value here has 8"),
        ({"store_dtype": "int8"}, "store_dtype must be 'auto', torch.int8"),
        ({"budget": 16, "recent": 4, "overflow": "rerotate"}, "rerotate' would round"),
    ):
        with pytest.raises(ConfigError, match=message):
            compiled(**settings)
