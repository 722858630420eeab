"""Canaries of what is private in optimum-quanto."""

import pytest
import torch
from torch import nn

from qfpass.upstream.quanto import few_bits_of


@pytest.mark.parametrize(("kind", "bits"), [("qint4", 4), ("qint2", 2)])
def test_few_bits_are_those_of_the_weight(kind: str, bits: int) -> None:
    quanto = pytest.importorskip("optimum.quanto", reason="needs optimum-quanto: pip install optimum-quanto")
    model = nn.Sequential(nn.Linear(64, 8, bias=False))
    quanto.quantize(model, weights=getattr(quanto, kind))
    quanto.freeze(model)
    held = few_bits_of(model[0].weight)
    assert held is not None and held.bits == bits and held.codes.dtype == torch.uint8
    assert held.codes.shape[0] == -(-held.groups * bits // 8)


def test_other_weights_have_none() -> None:
    assert few_bits_of(nn.Linear(4, 4).weight) is None
