"""The proof of a graph with other ends: read at once and in parts it gives what the original gives."""

from itertools import pairwise

import torch
from torch import nn

from ..attention.find import Attention
from ..errors import VerificationError
from ..graph.captured import Captured
from ..graph.in_float32 import HALF, InFloat32, can_be_widened
from ..kernels.kernel import Kernel
from ..proof.rounding import relative_difference, tolerance_of
from ..proof.text import positions_of
from ..proof.verify import PART_ENDS, PROOF_TOKENS
from ..rewriting.uncompressed import Uncompressed
from ..sessions.tokens import Tokens
from .cut import Cuts, with_ends
from .original import hidden_states_of, output_of


@torch.no_grad()
def prove_ends(
    model: nn.Module,
    captured: Captured,
    attentions: list[Attention],
    cuts: Cuts,
    tokens: Tokens,
    kernel: Kernel | None,
) -> None:
    """Raise unless the graph with these ends gives for `PROOF_TOKENS` tokens what the original gives.

    The captured graph is compared with the original, in the model's dtype. The rewritten one is compared with
    the captured one, in float32 where the model is in half precision.

    Raises:
        VerificationError: a value differs by more than rounding.
    """
    name, positions = type(model).__name__, positions_of(tokens.ids)
    text, *axes = tokens.inputs()
    graph = with_ends(captured.module, cuts)
    values = graph(text, positions, *axes)
    expected = [hidden_states_of(model, tokens, positions)[number] for number in tokens.hidden]
    expected += [output_of(model, tokens, positions)] if tokens.logits else []
    start = 0
    for wanted in expected:
        actual = values[..., start : start + wanted.shape[-1]]
        start += wanted.shape[-1]
        difference = relative_difference(actual, wanted)
        if not difference <= tolerance_of(captured.dtype):
            raise VerificationError(
                f"{name} doesn't work with {_in_words(tokens)}: its graph then differs from the original by "
                f"{difference:.1e}."
            )
    widened = captured.dtype in HALF and can_be_widened(captured.module)
    run = InFloat32(graph) if widened else graph
    _compare_parts(name, captured, attentions, cuts, tokens, kernel, run(text, positions, *axes), widened)


def _compare_parts(
    name: str,
    captured: Captured,
    attentions: list[Attention],
    cuts: Cuts,
    tokens: Tokens,
    kernel: Kernel | None,
    expected: torch.Tensor,
    widened: bool,
) -> None:
    """Raise unless the rewritten graph, read at once and in parts, gives `expected`."""
    program = Uncompressed(
        captured, attentions, PROOF_TOKENS, len(tokens.ids), in_float32=widened, kernel=kernel
    )
    module = with_ends(program.module, cuts)
    run = InFloat32(module) if widened else module
    allowed = tolerance_of(torch.float32 if widened else captured.dtype)
    for ends in ((0, PROOF_TOKENS), PART_ENDS):
        program.restart()
        parts = []
        for a, b in pairwise(ends):
            _, position, *rest = program.inputs(tokens.ids[:, a:b], PROOF_TOKENS - 1)
            text, *axes = tokens.between(a, b).inputs()
            parts.append(run(text, position, *axes, *rest))
        difference = relative_difference(torch.cat(parts, 1), expected)
        if not difference <= allowed:
            raise VerificationError(
                f"{name} doesn't work with {_in_words(tokens)}: the rewritten graph then differs from the "
                f"captured one by {difference:.1e}."
            )


def _in_words(tokens: Tokens) -> str:
    taken = "embeddings" if tokens.embeddings is not None else "ids"
    return f"{taken} in and {'hidden states' if tokens.hidden else 'logits'} out"
