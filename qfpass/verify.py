"""Proof: before compile returns, the rewritten graph without compression must be the original model."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import fx, nn

from .errors import VerificationError
from .graph.attention import Attention
from .graph.call import call_decoder, logits_of
from .graph.capture import Captured
from .graph.mixing import mixing_reason
from .graph.other_lengths import refuse_by_text_length
from .runtime.uncompressed import Uncompressed

PROOF_TOKENS = 20
# Tokens alone and chunks, each after the other, at the start and behind it.
PART_ENDS = (0, 1, 2, 3, 10, 12, 18, 19, PROOF_TOKENS)
# Largest difference allowed, relative to the largest logit: rounding of a reordered sum, not more.
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


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
    program = Uncompressed(captured, attentions, capacity=PROOF_TOKENS, batch=len(ids))
    ways = {"at once": (0, PROOF_TOKENS), "in parts": PART_ENDS}
    name = type(model).__name__
    tolerance = TOLERANCE.get(captured.dtype, 1e-1)
    for way, ends in ways.items():
        program.restart()
        try:
            actual = torch.cat(
                [program.read(ids[:, a:b], PROOF_TOKENS - 1) for a, b in pairwise(ends)], dim=1
            )
        except (RuntimeError, IndexError) as error:
            raise _cannot_run(name, captured, way, error) from error
        difference = relative_difference(actual, expected)
        if not difference <= tolerance:
            if reason := mixing_reason(captured.module):
                raise VerificationError(f"{name} can't be compiled: {reason}.")
            site = _first_different_site(captured, attentions, program, ids, ends, tolerance)
            raise VerificationError(
                f"read {way}, the rewritten graph differs from {name} by "
                f"{difference:.1e} of its largest logit (allowed: {tolerance:.0e}); {site}. The model may "
                "place tokens by something else than their positions. verify=False compiles it all the same."
            )
    refuse_by_text_length(program.module, context_length)


def _require_same_again(model: nn.Module, ids: torch.Tensor, tolerance: float) -> None:
    """The model's own logits must be the same when it reads the same text again."""
    expected, before = original_logits(model, ids), _settings(model)
    difference = relative_difference(original_logits(model, ids), expected)
    if difference <= tolerance:
        return
    after = _settings(model)
    changed = sorted(name for name in before | after if before.get(name) != after.get(name))
    what = f": each call changes its {', '.join(changed[:3])}" if changed else ", as if by chance"
    raise VerificationError(
        f"{type(model).__name__} gives other logits for the same text when it is called again, by "
        f"{difference:.1e} of the largest{what}. A session can't carry that: what a call computes must "
        "depend on its inputs alone."
    )


def _settings(model: nn.Module) -> dict[str, object]:
    """What modules hold beside their parts, by path: numbers, and which tensors."""
    found = dict[str, object]()
    for path, module in model.named_modules():
        for name, value in [*vars(module).items(), *module.named_buffers(recurse=False)]:
            if isinstance(value, (bool, int, float, str, type(None))):
                found[f"{path}.{name}".lstrip(".")] = value
            elif isinstance(value, torch.Tensor):
                found[f"{path}.{name}".lstrip(".")] = id(value)
    return found


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
    positions = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
    return logits_of(call_decoder(model, ids, positions))


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


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps the outputs of some of its nodes by name."""

    def __init__(self, module: fx.GraphModule, names: set[str]) -> None:
        super().__init__(module)
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
    original = _Recorder(captured.module, names)
    positions = torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
    original.run(ids, positions)
    program.restart()
    parts: dict[str, list[torch.Tensor]] = {}
    for a, b in pairwise(ends):
        rewritten = _Recorder(program.module, {f"attention_{x.index}" for x in attentions})
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
