"""Tokens taken back: what is left is what reading the others alone, in the same pieces, leaves."""

import os
from itertools import pairwise

import pytest
import torch
from croppable import CHUNK, FEW_BITS, TAKE_BACK, WINDOWS, check_same, in_order, model_named
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import padded, text
from torch import nn

EXAMPLES = int(os.environ.get("QFPASS_EXAMPLES", "8"))


class Rows:
    """A session of some rows beside what each row has read, in pieces that may be taken back."""

    def __init__(self, model: nn.Module, rows: int, budget: int | None = None) -> None:
        self.model, self.budget = model, budget
        self.session = model.session(budget=budget, take_back=TAKE_BACK)
        self.pieces: list[list[torch.Tensor]] = [[] for _ in range(rows)]
        self.calls: list[torch.Tensor] = []  # the mask of each call
        self.is_exact = True

    def read(self, lengths: list[int], side: str, seed: int) -> None:
        texts = [text(n, seed=9 * seed + i) for i, n in enumerate(lengths)]
        call = padded(texts, side)
        self.model(**call, past_key_values=self.session, logits_to_keep=1)
        self.calls.append(call["attention_mask"])
        for row, ids in enumerate(texts):
            length, final = ids.shape[1], max(0, ids.shape[1] - TAKE_BACK)
            cuts = [*range(0, final, CHUNK), final, length] if final else [0, length]
            self.pieces[row] += [ids[:, a:b] for a, b in pairwise(cuts) if b > a]

    def take_back(self, columns: int) -> None:
        self.session.crop(-columns)
        whole = torch.cat(self.calls, 1)
        self.calls = [whole[:, : whole.shape[1] - columns]]
        for row, removed in enumerate(whole[:, whole.shape[1] - columns :].sum(1).tolist()):
            pieces, left = self.pieces[row], int(removed)
            while left:
                last = pieces.pop()
                kept = max(0, last.shape[1] - left)
                left -= last.shape[1] - kept
                pieces += [last[:, :kept]] if kept else []
                # It was read in a chunk, which sees what its own tokens evict; alone it would be a step.
                self.is_exact &= kept != 1

    def check(self) -> None:
        """Each row is what reading its pieces alone leaves, and goes on alike."""
        more = text(3, seed=99).expand(len(self.pieces), -1)
        alone = [self.model.session(budget=self.budget) for _ in self.pieces]
        for row, session in enumerate(alone):
            for piece in self.pieces[row]:
                self.model(piece, past_key_values=session)
        assert self.session.row_tokens == tuple(session.tokens_seen for session in alone)
        for row, pieces in enumerate(self.pieces):
            if pieces:
                assert torch.equal(self.session.read_ids.rows()[row], torch.cat(pieces, 1)[0].int())
                mine, theirs = in_order(self.session, row), in_order(alone[row], 0)
                for layer, other in zip(mine, theirs, strict=True):
                    torch.testing.assert_close(layer[0], other[0])
                if self.is_exact:
                    check_same(mine, theirs)
        if not self.is_exact:
            return
        logits = self.model(more, past_key_values=self.session).logits
        wanted = [self.model(more[:1], past_key_values=session).logits for session in alone]
        torch.testing.assert_close(logits, torch.cat(wanted), atol=2e-3, rtol=1e-3)


lengths = st.one_of(
    st.integers(1, 14).map(lambda n: [n] * 3),
    st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any),
    st.lists(st.integers(0, 1), min_size=3, max_size=3).filter(any),
)
deeds = st.lists(
    st.tuples(lengths, st.sampled_from(("left", "right")), st.integers(0, TAKE_BACK)), min_size=1, max_size=6
)


@pytest.mark.parametrize("name", [WINDOWS, FEW_BITS])
@given(rows=st.sampled_from((1, 3)), budget=st.sampled_from((None, 9)), deeds=deeds)
@settings(max_examples=EXAMPLES)
def test_any_interleaving_leaves_what_reading_alone_leaves(
    name: str, rows: int, budget: int | None, deeds: list[tuple[list[int], str, int]]
) -> None:
    each = Rows(model_named(name), rows, budget)
    each.read([6] * rows, "left", seed=100)
    for seed, (many, side, columns) in enumerate(deeds):
        each.read([max(many)] if rows == 1 else many, side, seed)
        each.take_back(min(columns, max(many)))
    each.check()
