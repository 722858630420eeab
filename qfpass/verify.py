"""Proof: before compile returns, the rewritten graph without compression must be the original model."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import fx, nn

from .errors import VerificationError
from .graph.attention import Attention
from .graph.capture import Captured
from .graph.in_float32 import HALF, InFloat32, can_be_widened
from .graph.mixing import mixing_reason
from .graph.other_lengths import refuse_by_text_length
from .graph.ranks import ALONE, Ranks
from .proof_text import original_logits, positions_of, random_text, with_likely_end
from .rounding import amplified, relative_difference, row_differences, tolerance_of
from .runtime.snapshot import Snapshot
from .runtime.uncompressed import Uncompressed

PROOF_TOKENS = 20
# Tokens alone and chunks, each after the other, at the start and behind it.
PART_ENDS = (0, 1, 2, 3, 10, 12, 18, 19, PROOF_TOKENS)
MOST_ROUNDING = 0.5  # of the largest logit


def verify(
    model: nn.Module,
    captured: Captured,
    attentions: Sequence[Attention],
    context_length: int | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Compare the rewritten graph with `model` on a short text, read at once and in parts.

    Half of it are ids by chance, the rest goes on with what the model finds likely; each half is judged by
    itself. That nothing else happens in longer texts, of up to `context_length` tokens, is read off the
    graph. `ranks` run the model with this process.

    Raises:
        UnsupportedOpError: something does; see `refuse_by_text_length`.
        VerificationError: they differ beyond the dtype's tolerance; names the first attention that does.
    """
    by_chance = random_text(captured, PROOF_TOKENS)
    _require_same_again(model, by_chance[:, :2], tolerance_of(captured.dtype), ranks)
    ids = with_likely_end(model, by_chance, PROOF_TOKENS // 2)
    proof = _Proof(type(model).__name__, captured, attentions, ids, ranks)
    proof.compare(original_logits(model, ids))
    refuse_by_text_length(proof.program.module, context_length, PROOF_TOKENS)


class _Proof:
    """The rewritten graph of the model `name`, to be compared with its logits of ids [B, S]."""

    def __init__(
        self,
        name: str,
        captured: Captured,
        attentions: Sequence[Attention],
        ids: torch.Tensor,
        ranks: Ranks,
    ) -> None:
        self._name, self._captured, self._attentions = name, captured, attentions
        self._ids, self._ranks = ids, ranks
        self.program = Uncompressed(captured, attentions, PROOF_TOKENS, len(ids))
        self._exact: Uncompressed | None = None
        if captured.dtype in HALF and can_be_widened(captured.module):
            self._exact = Uncompressed(captured, attentions, PROOF_TOKENS, len(ids), in_float32=True)

    def compare(self, expected: torch.Tensor) -> None:
        """Refuse logits that differ from those `expected`, read at once or in parts.

        A graph in half precision is compared in float32 first, and then with what is exact. Since the same
        graphs agree in float32, each half may differ by twice what the original does, where that is more, or
        by what the original makes of a change of a few last bits; a half that is all rounding tells nothing.

        Raises:
            VerificationError
        """
        allowed = torch.full((2 * len(self._ids),), tolerance_of(self._captured.dtype))
        if self._exact is not None:
            exact = InFloat32(self._captured.module)(self._ids, positions_of(self._ids))
            self._compare(self._exact, exact, torch.full_like(allowed, tolerance_of(torch.float32)))
            own = _differences(expected, exact)
            self._refuse_rounding(own)
            allowed = allowed.maximum(2 * own).where(own <= MOST_ROUNDING, torch.inf)
            expected = exact
        self._compare(self.program, expected, allowed)

    def _refuse_rounding(self, own: torch.Tensor) -> None:
        """Refuse a model whose own rounding, of each half, hides everything in all of them."""
        if self._ranks.all(bool((own <= MOST_ROUNDING).any())):
            return
        shown = " and ".join(f"{rounding:.0%}" for rounding in own.tolist())
        raise VerificationError(
            f"in {self._captured.dtype} {self._name} is {shown} of its largest logit off what it is in "
            "float32, on ids by chance and on likely ones, so that nothing can be proven: load it in "
            "float32, or pass verify=False."
        )

    def _compare(self, program: Uncompressed, expected: torch.Tensor, allowed: torch.Tensor) -> None:
        ids = self._ids
        for way, ends in {"at once": (0, PROOF_TOKENS), "in parts": PART_ENDS}.items():
            differences = _differences(self._read(program, way, ends), expected)
            within = (differences <= allowed) | allowed.isinf()
            if self._ranks.all(bool(within.all())):
                continue
            row = int(within.long().argmin())
            difference = float(differences.where(~within, 0).max())
            rounding = amplified(self._captured, self._attentions, ids, program.in_float32)
            is_amplified = self._ranks.all(rounding >= difference / 4)
            if is_amplified and self._exact not in (None, program):
                continue  # experts that a last bit chooses: in float32 they are the same
            why = self._why(program, ends, rounding if is_amplified else None)
            in_float32 = ", both in float32," if program is self._exact else ""
            own = ", which is twice the original's own rounding or the least" if self._exact else ""
            raise VerificationError(
                f"read {way}, the rewritten graph differs from {self._name}{in_float32} by {difference:.1e} "
                f"of its largest logit (allowed: {allowed[row]:.0e}{own if not in_float32 else ''}){why}. "
                "verify=False compiles it all the same."
            )

    def _why(self, program: Uncompressed, ends: Sequence[int], rounding: float | None) -> str:
        """What is known of a difference; `rounding` is what the original makes of its own, if that is it."""
        if reason := mixing_reason(self._captured.module):
            raise VerificationError(f"{self._name} can't be compiled: {reason}.")
        if rounding is not None:
            return (
                f", and the original itself moves by {rounding:.1e} where its attentions move by a few of "
                "their last bits: it amplifies rounding, as activations that are quantised on the fly do, so "
                "that an error can't be told from it"
            )
        tolerance = float(tolerance_of(torch.float32 if program is self._exact else self._captured.dtype))
        site = _first_different_site(self._captured, self._attentions, program, self._ids, ends, tolerance)
        return f"; {site}. The model may place tokens by something else than their positions"

    def _read(self, program: Uncompressed, way: str, ends: Sequence[int]) -> torch.Tensor:
        program.restart()
        try:
            parts = [program.read(self._ids[:, a:b], PROOF_TOKENS - 1) for a, b in pairwise(ends)]
        except (RuntimeError, IndexError) as error:
            raise _cannot_run(self._name, self._captured, way, error) from error
        return torch.cat(parts, dim=1)


def _differences(actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Of logits [B, S, V] each row's first and second half by itself, [2 * B]."""
    halves = (tensor.unflatten(1, (2, -1)).flatten(0, 1) for tensor in (actual, expected))
    return row_differences(*halves)


def _require_same_again(model: nn.Module, ids: torch.Tensor, tolerance: float, ranks: Ranks) -> None:
    """The model's own logits must be the same when it reads the same text again."""
    expected, before = original_logits(model, ids), Snapshot(model)
    difference = relative_difference(original_logits(model, ids), expected)
    if ranks.all(difference <= tolerance):
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
