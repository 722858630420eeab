"""Whether Inductor supports vector instructions of this CPU."""

import pytest
from torch._inductor import cpu_vec_isa

from qfpass.upstream import vector_isa
from qfpass.upstream.entry import UpstreamWarning


def test_has_vectors_says_no_where_trials_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(vector_isa.has_vectors, "failure", None)
    monkeypatch.setattr(cpu_vec_isa, "valid_vec_isa_list", fail)
    with pytest.warns(UpstreamWarning, match="no compiler"):
        assert not vector_isa.has_vectors()


def test_has_vectors_knows_those_that_inductor_uses() -> None:
    assert vector_isa.has_vectors.function() == any(
        isa.bit_width() > 0 for isa in cpu_vec_isa.valid_vec_isa_list()
    )
