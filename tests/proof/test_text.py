"""The text that a proof reads."""

import torch
from decoders import text
from tiny import FAMILIES

from qfpass.proof.text import ROUNDS, original_logits, with_likely_end


def test_the_proof_goes_on_with_what_the_model_finds_likely() -> None:
    model, first = FAMILIES["llama"](), 10
    ids = text(20)
    likely = with_likely_end(model, ids, first, limit=61)
    assert torch.equal(likely[:, :first], ids[:, :first])
    for end in range(first, first + ROUNDS):  # each round writes one more token for good
        assert likely[0, end] == original_logits(model, likely[:, :end])[0, -1].argmax()

    def chance(of: torch.Tensor) -> torch.Tensor:
        each = original_logits(model, of)[:, first - 1 : -1].log_softmax(-1)
        return each.gather(2, of[:, first:, None]).mean()

    assert chance(likely) > chance(ids) + 1
