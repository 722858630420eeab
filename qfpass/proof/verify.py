"""The proof: without compression, the rewritten graph must give the original model's logits."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import fx, nn

from ..attention.find import Attention
from ..attention.possible_mixing import mixes, possible_mixing, possible_mixing_reason, surely_mixes
from ..attention.token_mixing import mixing_reason
from ..capture.ranks import ALONE, Ranks
from ..errors import VerificationError
from ..graph.captured import Captured, id_limit
from ..graph.in_float32 import HALF, InFloat32, can_be_widened
from ..kernels.kernel import Kernel
from ..rewriting.uncompressed import Uncompressed
from .length_dependence import refuse_by_text_length
from .repeatable import require_repeatable
from .rounding import amplified_rounding, relative_difference, row_differences, tolerance_of
from .text import original_logits, positions_of, random_text, with_likely_end

PROOF_TOKENS = 20
# Where the parts of a text end: single tokens and chunks, each kind after the other, at the start and later.
PART_ENDS = (0, 1, 2, 3, 10, 12, 18, 19, PROOF_TOKENS)
MOST_ROUNDING = 0.5  # relative to the largest logit; with more, nothing can be proven


def verify(
    model: nn.Module,
    captured: Captured,
    attentions: Sequence[Attention],
    context_length: int | None = None,
    ranks: Ranks = ALONE,
    kernel: Kernel | None = None,
) -> None:
    """Raise if the rewritten graph's logits for a short text differ from the model's.

    The text is read at once and in parts. The first half of it is random ids, the second is ids that the
    model finds likely; each half is judged by itself. Whether longer texts, of up to `context_length` tokens,
    are computed differently is read off the graph. `ranks` are the processes that run the model together,
    `kernel` a kernel of the caller's own.

    Raises:
        UnsupportedOpError: longer texts are; see `refuse_by_text_length`.
        VerificationError: the logits differ by more than rounding; names the first attention that differs.
    """
    random_ids = random_text(captured, PROOF_TOKENS)
    require_repeatable(model, captured, random_ids, ranks)
    ids = with_likely_end(model, random_ids, PROOF_TOKENS // 2, id_limit(captured.module))
    proof = _Proof(type(model).__name__, captured, attentions, ids, ranks, kernel)
    proof.compare(original_logits(model, ids))
    _refuse_mixing_for_rare_ids(type(model).__name__, captured, ranks)
    ranks.together(lambda: refuse_by_text_length(proof.program.module, context_length, PROOF_TOKENS))


def _refuse_mixing_for_rare_ids(name: str, captured: Captured, ranks: Ranks) -> None:
    """Raise if an operator passes something between tokens for ids that no text of the proof may hold.

    Collectives of the graph run here, so all processes run it equally often, also for another's operators.
    """
    possible = possible_mixing(captured.module)
    for place in range(max(ranks.each(len(possible)))):
        node = possible[place] if place < len(possible) else None
        passes_on = node is not None and surely_mixes(captured.module, node)
        if ranks.all(not passes_on):
            passes_on = mixes(captured.module, node)
        reason = possible_mixing_reason(node) if node is not None and passes_on else None
        if (reason := ranks.first(reason)) is not None:
            raise VerificationError(f"{name} can't be compiled: {reason}.")


class _Proof:
    """Compares the rewritten graph of the model `name` with the model's logits for ids [B, S].

    Attributes:
        program: the rewritten graph in the model's dtype.
    """

    def __init__(
        self,
        name: str,
        captured: Captured,
        attentions: Sequence[Attention],
        ids: torch.Tensor,
        ranks: Ranks,
        kernel: Kernel | None,
    ) -> None:
        self._name, self._captured, self._attentions = name, captured, attentions
        self._ids, self._ranks = ids, ranks
        self.program = Uncompressed(captured, attentions, PROOF_TOKENS, len(ids), kernel=kernel)
        self._is_widened = ranks.all(captured.dtype in HALF and can_be_widened(captured.module))

    def compare(self, expected: torch.Tensor) -> None:
        """Raise if the rewritten graph's logits differ from `expected`, read at once or in parts.

        A graph in half precision is first run in float32 and compared with the original in float32. Then it
        is run in its own dtype and compared with the original in float32. Since the graphs agree in float32,
        a half of the text may then differ by the tolerance, by twice the original's own rounding, or by what
        the original makes of a change of a few last bits. A half that is mostly rounding isn't compared.

        Raises:
            VerificationError: they differ by more, or nothing can be compared.
        """
        allowed = torch.full((2 * len(self._ids),), tolerance_of(self._captured.dtype))
        if self._is_widened:
            exact = InFloat32(self._captured.module)(self._ids, positions_of(self._ids))
            self._compare(self._in_float32(), exact, torch.full_like(allowed, tolerance_of(torch.float32)))
            own = _differences(expected, exact)
            self._refuse_rounding(own)
            allowed = allowed.maximum(2 * own).where(own <= MOST_ROUNDING, torch.inf)
            expected = exact
        self._compare(self.program, expected, allowed)

    def _in_float32(self) -> Uncompressed:
        """The rewritten graph in float32; not kept, since it may hold widened weights."""
        sizes = PROOF_TOKENS, len(self._ids)
        return Uncompressed(self._captured, self._attentions, *sizes, in_float32=True)

    def _refuse_rounding(self, own: torch.Tensor) -> None:
        """Raise if in every half the original's own rounding, `own` [2 * B], is too large for a proof."""
        if self._ranks.all(bool((own <= MOST_ROUNDING).any())):
            return
        shown = " and ".join(f"{rounding:.0%}" for rounding in own.tolist())
        raise VerificationError(
            f"in {self._captured.dtype} the logits of {self._name} are {shown} of the largest one away from "
            "those in float32, on random ids and on likely ones, so nothing can be proven: load it in "
            "float32, or pass verify=False."
        )

    def _compare(self, program: Uncompressed, expected: torch.Tensor, allowed: torch.Tensor) -> None:
        """Raise if the program's logits differ from `expected` by more than `allowed` [2 * B] in a half."""
        ids = self._ids
        for way, ends in {"at once": (0, PROOF_TOKENS), "in parts": PART_ENDS}.items():
            differences = _differences(self._read(program, way, ends), expected)
            within = (differences <= allowed) | allowed.isinf()
            if self._ranks.all(bool(within.all())):
                continue
            row = int(within.long().argmin())
            difference = float(differences.where(~within, 0).max())
            rounding = amplified_rounding(self._captured, self._attentions, ids, program.in_float32)
            is_amplified = self._ranks.all(rounding >= difference / 4)
            if is_amplified and self._is_widened and not program.in_float32:
                continue  # last bits choose other experts; in float32 the graphs have agreed
            why = self._explanation(program, ends, rounding if is_amplified else None)
            in_float32 = ", both in float32," if program.in_float32 else ""
            own = ", which is twice the original's own rounding or the least" if self._is_widened else ""
            raise VerificationError(
                f"read {way}, the rewritten graph differs from {self._name}{in_float32} by {difference:.1e} "
                f"of its largest logit (allowed: {allowed[row]:.0e}{own if not in_float32 else ''}){why}. "
                "verify=False compiles it all the same."
            )

    def _explanation(self, program: Uncompressed, ends: Sequence[int], rounding: float | None) -> str:
        """Words on the cause of a difference; `rounding` is the original's, if that explains it.

        Raises:
            VerificationError: the model keeps state outside attention.
        """
        if reason := self._ranks.first(mixing_reason(self._captured.module)):
            raise VerificationError(f"{self._name} can't be compiled: {reason}.")
        if rounding is not None:
            return (
                f", and the original itself moves by {rounding:.1e} where its attentions move by a few of "
                "their last bits: it amplifies rounding, as activations that are quantised on the fly do, so "
                "that an error can't be told from it"
            )
        tolerance = float(tolerance_of(torch.float32 if program.in_float32 else self._captured.dtype))
        site = _first_different_site(self._captured, self._attentions, program, self._ids, ends, tolerance)
        site = self._ranks.first(site) or "no attention differs, so the difference lies outside of them"
        return f"; {site}. The model may order tokens by something other than their positions"

    def _read(self, program: Uncompressed, way: str, ends: Sequence[int]) -> torch.Tensor:
        """The program's logits for the text, read in parts that end at `ends`; `way` is that in words."""
        program.restart()
        try:
            parts = [program.read(self._ids[:, a:b], PROOF_TOKENS - 1) for a, b in pairwise(ends)]
        except (RuntimeError, IndexError) as error:
            raise _cannot_run(self._name, self._captured, way, error) from error
        return torch.cat(parts, dim=1)


def _differences(actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """The relative differences of logits [B, S, V], for each row's first and second half: [2 * B]."""
    halves = (tensor.unflatten(1, (2, -1)).flatten(0, 1) for tensor in (actual, expected))
    return row_differences(*halves)


def _cannot_run(name: str, captured: Captured, way: str, error: Exception) -> VerificationError:
    """The error to raise where the rewritten graph itself fails."""
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
        super().__init__(module, as_it_is, most=0)
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
) -> str | None:
    """Words that name the first attention whose output differs; None if none does."""
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
    return None
