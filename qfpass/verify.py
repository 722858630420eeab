"""Proof: before compile returns, the rewritten graph without compression must be the original model."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import fx, nn

from .errors import VerificationError
from .graph.attention import Attention
from .graph.call import call_decoder, logits_of
from .graph.capture import Captured
from .graph.in_float32 import HALF, InFloat32, can_be_widened
from .graph.mixing import mixing_reason
from .graph.other_lengths import refuse_by_text_length
from .runtime.snapshot import Snapshot
from .runtime.uncompressed import Uncompressed

PROOF_TOKENS = 20
# Tokens alone and chunks, each after the other, at the start and behind it.
PART_ENDS = (0, 1, 2, 3, 10, 12, 18, 19, PROOF_TOKENS)
# Largest difference allowed, relative to the largest logit: rounding of a reordered sum, not more. In half
# precision twice the original's own rounding is allowed where that is more, since the same graphs agree in
# float32.
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
MOST_ROUNDING = 0.5  # of the largest logit


def verify(
    model: nn.Module,
    captured: Captured,
    attentions: Sequence[Attention],
    context_length: int | None = None,
) -> None:
    """Compare the rewritten graph with `model` on a short text, read at once and in parts.

    That nothing else happens in longer texts, of up to `context_length` tokens, is read off the graph.

    Raises:
        UnsupportedOpError: something does; see `refuse_by_text_length`.
        VerificationError: they differ beyond the dtype's tolerance; names the first attention that does.
    """
    ids = random_text(captured)
    _require_same_again(model, ids[:, :2], TOLERANCE.get(captured.dtype, 1e-1))
    expected = original_logits(model, ids)
    name, tolerance = type(model).__name__, TOLERANCE.get(captured.dtype, 1e-1)
    if captured.dtype in HALF and can_be_widened(captured.module):
        exact = InFloat32(captured.module)(ids, positions_of(ids))
        wide = _Proof(name, captured, attentions, ids, in_float32=True)
        wide.compare(exact, TOLERANCE[torch.float32], ", both in float32,")
        own = relative_difference(expected, exact)
        if not own <= MOST_ROUNDING:
            raise VerificationError(
                f"in {captured.dtype} {name} is {own:.0%} of its largest logit off what it is in float32, so "
                "that nothing can be proven: load it in float32, or pass verify=False."
            )
        expected, tolerance = exact, max(tolerance, 2 * own)
    proof = _Proof(name, captured, attentions, ids)
    proof.compare(expected, tolerance)
    refuse_by_text_length(proof.program.module, context_length, PROOF_TOKENS)


class _Proof:
    """The rewritten graph, to be compared with logits of a text."""

    def __init__(
        self,
        name: str,
        captured: Captured,
        attentions: Sequence[Attention],
        ids: torch.Tensor,
        in_float32: bool = False,
    ) -> None:
        self._name, self._captured, self._attentions, self._ids = name, captured, attentions, ids
        self.program = Uncompressed(captured, attentions, PROOF_TOKENS, len(ids), in_float32)

    def compare(self, expected: torch.Tensor, tolerance: float, how: str = "") -> None:
        """Refuse logits that differ from those `expected`, read at once or in parts.

        Raises:
            VerificationError
        """
        for way, ends in {"at once": (0, PROOF_TOKENS), "in parts": PART_ENDS}.items():
            difference = relative_difference(self._read(way, ends), expected)
            if difference <= tolerance:
                continue
            if reason := mixing_reason(self._captured.module):
                raise VerificationError(f"{self._name} can't be compiled: {reason}.")
            site = _first_different_site(
                self._captured, self._attentions, self.program, self._ids, ends, tolerance
            )
            raise VerificationError(
                f"read {way}, the rewritten graph differs from {self._name}{how} by "
                f"{difference:.1e} of its largest logit (allowed: {tolerance:.0e}); {site}. The model may "
                "place tokens by something else than their positions. verify=False compiles it all the same."
            )

    def _read(self, way: str, ends: Sequence[int]) -> torch.Tensor:
        self.program.restart()
        try:
            parts = [self.program.read(self._ids[:, a:b], PROOF_TOKENS - 1) for a, b in pairwise(ends)]
        except (RuntimeError, IndexError) as error:
            raise _cannot_run(self._name, self._captured, way, error) from error
        return torch.cat(parts, dim=1)


def _require_same_again(model: nn.Module, ids: torch.Tensor, tolerance: float) -> None:
    """The model's own logits must be the same when it reads the same text again."""
    expected, before = original_logits(model, ids), Snapshot(model)
    difference = relative_difference(original_logits(model, ids), expected)
    if difference <= tolerance:
        return
    changed = before.differences()
    what = f": each call changes its {', '.join(changed[:3])}" if changed else ", as if by chance"
    raise VerificationError(
        f"{type(model).__name__} gives other logits for the same text when it is called again, by "
        f"{difference:.1e} of the largest{what}. A session can't carry that: what a call computes must "
        "depend on its inputs alone."
    )


def _cannot_run(name: str, captured: Captured, way: str, error: Exception) -> VerificationError:
    if reason := mixing_reason(captured.module):
        return VerificationError(f"{name} can't be compiled: {reason}.")
    first = str(error).strip().splitlines()[0]
    return VerificationError(
        f"{name} can't be compiled: read {way}, its graph fails outside attention, where it works for a "
        f"text that starts with the call only ({first})."
    )


@torch.no_grad()
def original_logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The model's own logits [B, S, V] for ids [B, S], without a cache."""
    return logits_of(call_decoder(model, ids, positions_of(ids)))


def positions_of(ids: torch.Tensor) -> torch.Tensor:
    """[B, S], of ids that start a text."""
    return torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)


def random_text(captured: Captured, tokens: int = PROOF_TOKENS) -> torch.Tensor:
    """Ids that every vocabulary has: the embedding's size is unknown, so small numbers, unordered."""
    generator = torch.Generator().manual_seed(0)
    shape = (captured.batch or 1, tokens)
    return torch.randint(_vocabulary(captured), shape, generator=generator).to(captured.device)


def _vocabulary(captured: Captured) -> int:
    """Size of the logits' last dimension, at most the embedding's in every decoder known."""
    (logits,) = captured.module.graph.output_node().all_input_nodes
    return int(logits.meta["val"].shape[-1])


def relative_difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference over the largest magnitude; NaN if either holds one."""
    scale = expected.float().abs().max().clamp(min=1e-6)
    return float((actual.float() - expected.float()).abs().max() / scale)


class _Recorder(InFloat32):
    """Runs a graph and keeps the outputs of some of its nodes by name."""

    def __init__(self, module: fx.GraphModule, names: set[str], as_it_is: bool) -> None:
        super().__init__(module, as_it_is)
        self.names, self.outputs = names, dict[str, torch.Tensor]()

    def run_node(self, node: fx.Node) -> object:
        result = super().run_node(node)
        if node.name in self.names:
            self.outputs[node.name] = result
        return result


@torch.no_grad()
def _first_different_site(
    captured: Captured,
    attentions: Sequence[Attention],
    program: Uncompressed,
    ids: torch.Tensor,
    ends: Sequence[int],
    tolerance: float,
) -> str:
    """The first attention whose output differs, in words."""
    names = {a.node.name for a in attentions}
    original = _Recorder(captured.module, names, not program.in_float32)
    original.run(ids, positions_of(ids))
    program.restart()
    parts: dict[str, list[torch.Tensor]] = {}
    for a, b in pairwise(ends):
        rewritten = _Recorder(
            program.module, {f"attention_{x.index}" for x in attentions}, not program.in_float32
        )
        rewritten.run(*program.inputs(ids[:, a:b], PROOF_TOKENS - 1))
        for name, output in rewritten.outputs.items():
            parts.setdefault(name, []).append(output)
    for attention in attentions:
        actual = torch.cat(parts[f"attention_{attention.index}"], dim=2)
        expected = original.outputs[attention.node.name]
        if attention.heads_last:
            expected = expected[0].transpose(1, 2)
        if not relative_difference(actual, expected) <= tolerance:
            return f"the first attention that differs is {attention.name} (site {attention.index})"
    return "no attention differs, so the difference lies outside of them"
