"""The report: every attention in order, what it keeps, and what that costs."""

import pytest
from bounded import compiled, llama
from decoders import causal, decoder, text, within
from torch import nn

import qfpass
from qfpass.switches import NAMES
from qfpass.upstream.fake_tensors import has_sizes_of_values


def test_sites_and_bytes() -> None:
    model = compiled(decoder([within(8), causal, causal]), skip_layers=(2,))
    report = qfpass.report(model)
    assert [(s.index, s.name, s.span, s.slots, s.score) for s in report.sites] == [
        (0, "layers.0", "causal, window 8", 8, "window"),
        (1, "layers.1", "causal", 16, "recency"),
        (2, "layers.2", "causal", 48, "recency"),
    ]
    assert {(s.query_heads, s.kv_heads, s.head_dim, s.kernel) for s in report.sites} == {
        (6, 2, 8, "cpu flash")
    }
    token = 2 * 2 * 8 * 4  # keys and values of 2 heads of 8 float32
    assert report.nbytes == token * (8 + 16 + 48)
    assert report.full_nbytes == token * 48 * 3
    session = model.session()
    model(text(40), past_key_values=session)
    assert session.kv_nbytes == report.nbytes


def test_the_table_shows_them() -> None:
    shown = " ".join(str(qfpass.report(compiled(llama()))).split())
    assert "2 attentions" in shown
    for part in (
        "0-1",
        "layers.0.self_attn and alike",
        "4/2",
        "causal",
        "cpu flash",
        "3.0x smaller",
        "0 graphs compiled",
    ):
        assert part in shown


def test_equal_attentions_share_a_row() -> None:
    model = compiled(decoder([causal, within(8), causal, causal, within(8)]))
    rows = [line for line in str(qfpass.report(model)).splitlines() if "layers." in line]
    assert [row.split("│")[1].strip() for row in rows] == ["0, 2-3", "1, 4"]


def test_each_optimisation_has_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    model = compiled(llama(), switches=qfpass.Switches(own_loops=False))
    told = {each.name: (each.state, each.reason) for each in qfpass.report(model).optimisations}
    assert told.keys() == set(NAMES)
    assert told["own_loops"] == ("off by choice", "")
    assert told["trace_layers_once"] == ("on", "")
    assert told["replay"] == ("not used", "the backend is 'eager'")
    assert told["capture_cache"] == ("not used", "graphs are kept for Inductor alone")
    monkeypatch.setattr(has_sizes_of_values, "failure", "ImportError: gone")
    shown = str(qfpass.report(compiled(llama())))
    assert "trace_layers_once" in shown
    assert "on: but for fake_tensors.has_sizes_of_values: ImportError: gone" in shown


def test_what_isnt_used_says_why() -> None:
    told = {each.name: each for each in qfpass.report(compiled(llama(), verify=False)).optimisations}
    assert "verify=False" in told["trace_layers_once"].reason


def test_another_model_has_none() -> None:
    with pytest.raises(qfpass.QFPassError, match=r"Linear was not made by qfpass\.compile"):
        qfpass.report(nn.Linear(2, 2))
