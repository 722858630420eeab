"""Finding and rewriting at no compression, for any decoder of the tests."""

from itertools import pairwise

import torch
from decoders import Decoder, places, text

from qfpass.attention.find import Attention, find_attentions
from qfpass.capture.export import capture
from qfpass.graph.captured import Captured
from qfpass.rewriting.uncompressed import Uncompressed


def found(model: Decoder) -> tuple[Captured, list[Attention]]:
    """A decoder's graph and the attentions in it."""
    captured = capture(model)
    return captured, find_attentions(captured, 64)


@torch.no_grad()
def check_rewritten(model: Decoder, captured: Captured, attentions: list[Attention], batch: int = 2) -> None:
    """The rewritten decoder, keeping every key, equals the model however the text is cut."""
    ids = text(13, batch)
    wanted = model(ids, places(ids))
    program = Uncompressed(captured, attentions, capacity=13, batch=batch)
    for ends in ((0, 13), (0, 5, 6, 10, 13), tuple(range(14))):
        program.restart()
        actual = torch.cat([program.read(ids[:, a:b]) for a, b in pairwise(ends)], dim=1)
        torch.testing.assert_close(actual, wanted, atol=1e-4, rtol=1e-4)
