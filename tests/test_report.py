"""The report: every attention in order, what it keeps, and what that costs."""

import pytest
from bounded import compiled, llama
from decoders import causal, decoder, text, within
from torch import nn

import qfpass


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
    shown = str(qfpass.report(compiled(llama())))
    assert "2 attentions" in shown
    for part in ("layers.1.self_attn", "4/2", "causal", "cpu flash", "3.0x smaller", "0 graphs compiled"):
        assert part in shown


def test_another_model_has_none() -> None:
    with pytest.raises(qfpass.QFPassError, match=r"Linear was not made by qfpass\.compile"):
        qfpass.report(nn.Linear(2, 2))
