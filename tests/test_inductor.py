"""Lowered by Inductor, a decoder gives the eager backend's numbers from a few graphs, for any cuts."""

from itertools import pairwise

import pytest
import torch
from bounded import graphs_of_one_batch
from often import often
from test_families import BUILDERS, close, logits_of, text
from tiny import FORMS
from torch import nn

import qfpass

LENGTH, SETTINGS = 60, {"budget": 24, "context_length": 64, "chunk": 9, "recent": 6, "score": "recency"}


@torch.no_grad()
def read(model: nn.Module, session: qfpass.Session, ids: torch.Tensor, ends: list[int]) -> torch.Tensor:
    calls = [model(ids[:, a:b], past_key_values=session) for a, b in pairwise(ends)]
    return torch.cat([logits_of(call) for call in calls], dim=1)


# Grouped heads; full and sliding layers; learned positions.
@pytest.mark.parametrize("family", often({"llama", "gemma3", "gpt2"}, BUILDERS | FORMS))
def test_equals_the_eager_backend(family: str) -> None:
    model = (BUILDERS | FORMS)[family](layers=4)
    eager = qfpass.compile(model, backend="eager", verify=False, **SETTINGS)
    lowered = qfpass.compile(model, verify=False, **SETTINGS)
    ids, session = text(LENGTH), lowered.session()
    ends = [0, 9, 20, 21, 22, 40, 41, LENGTH]
    close(read(lowered, session, ids, ends), read(eager, eager.session(), ids, ends))
    compiled = qfpass.report(lowered).graphs_compiled
    assert compiled == graphs_of_one_batch(lowered)
    session.reset()
    others = [0, 1, 2, 33, 50, 51, LENGTH]
    close(read(lowered, session, ids, others), read(eager, eager.session(), ids, others))
    assert qfpass.report(lowered).graphs_compiled == compiled
