"""The pass by itself: find the attentions of a decoder, and rewrite its graph onto stores.

`qfpass.compile` does this and more: it proves, chooses filters, compiles and puts the decoder in the place of
the model. These two are for those who lower the graph themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import overload

import torch
from torch import nn

from .attention.find import Attention, find_attentions
from .capture.decoder_call import own_context_length
from .capture.export import capture, captured_program
from .capture.original import original_of
from .capture.quantised_linears import as_compiled, require_alike
from .capture.suitable import refuse_unsuitable
from .errors import CaptureError, ConfigError, UnsupportedOpError
from .graph.captured import Captured
from .graph.tracing import TRACING
from .kernels.kernel import Kernel
from .rewriting.on_stores import OnStores
from .rewriting.site import Rule, Site
from .rewriting.uncompressed import kernel_call_of
from .store.ring import RingRule
from .upstream.pipeline_parallel import stage_of


@dataclass(frozen=True, eq=False)
class Attentions(Sequence[Attention]):
    """The attentions of a decoder in the order of its graph.

    Attributes:
        captured: the graph that they stand in.
        found: those that are understood.
        refused: the others by name, each with the reason.
    """

    captured: Captured
    found: tuple[Attention, ...]
    refused: Mapping[str, str]

    @overload
    def __getitem__(self, index: int) -> Attention: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Attention, ...]: ...
    def __getitem__(self, index: int | slice) -> Attention | tuple[Attention, ...]:
        return self.found[index]

    def __len__(self) -> int:
        return len(self.found)

    def __str__(self) -> str:
        lines = [
            f"{a.index} {a.name}: {a.query_heads} query and {a.kv_heads} key/value heads of {a.head_dim}, "
            f"{a.span}, {a.form}"
            for a in self.found
        ]
        return "\n".join([*lines, *(f"refused: {reason}" for reason in self.refused.values())])


def find(model: nn.Module | torch.export.ExportedProgram, context_length: int | None = None) -> Attentions:
    """The attentions of a decoder: what each reads, the form of its logits, the keys that its mask shows.

    Args:
        model: a causal decoder in eval mode, also on the meta device, without weights; or an export of one,
            (input_ids [B, S], position_ids [B, S]) -> logits [B, S, V].
        context_length: tokens of the longest text, at which masks are evaluated; by default the model's own,
            for an export up to 16,384.

    Raises:
        CaptureError: the model can't be held in one graph, or is one stage of a pipeline.
        NoAttentionError: no attention stands in the graph.
    """
    if isinstance(model, torch.export.ExportedProgram):
        captured = captured_program(model)
    else:
        model = original_of(model)
        refuse_unsuitable(model, needs_numbers=False)
        if stage_of(model):
            raise CaptureError(
                f"{type(model).__name__} is one stage of a pipeline (pp_size), with its own layers alone: "
                "look at the whole model, on the meta device if it is large."
            )
        context_length = context_length or own_context_length(model)
        with TRACING, as_compiled(model):
            if all(not weight.is_meta for weight in model.parameters()):
                require_alike(model)
            captured = capture(model, needs_numbers=False)
    refused = dict[str, str]()
    found = find_attentions(captured, context_length, refused)
    return Attentions(captured, tuple(found), refused)


def rewrite(
    attentions: Attentions, rule: Rule | Callable[[Attention], Rule], kernel: Kernel | None = None
) -> OnStores:
    """The decoder with every attention on a store of its own, which is an input of its graph.

    Args:
        rule: how layers keep keys: a `SlotRule(slots, recent, sinks, score)` of `qfpass.store.slots` for all
            but those with a window or chunks, which keep exactly these. Or a function of one attention, which
            gives such a rule or, for a window or chunks, its `RingRule`.
        kernel: attention of your own, after the contract in `qfpass.kernels`.

    Raises:
        UnsupportedOpError: an attention was refused by `find`.
        ConfigError: a rule doesn't keep what its attention's mask shows.
    """
    if attentions.refused:
        raise UnsupportedOpError("; ".join(attentions.refused.values()))
    captured = attentions.captured
    sites = [
        Site(a, _rule_for(a, rule), kernel_call_of(captured, a, kernel=kernel)) for a in attentions.found
    ]
    return OnStores(captured, sites)


def _rule_for(attention: Attention, rule: Rule | Callable[[Attention], Rule]) -> Rule:
    """The rule of one layer, fit for its mask; layers of equal slots have equal shares."""
    span = attention.span
    ring = None if span.reach is None else RingRule(span.reach, chunked=span.chunk is not None)
    chosen = rule(attention) if callable(rule) else (ring or rule)
    if ring is not None and chosen != ring:
        raise ConfigError(f"{attention.name} is {span}: its rule must be {ring}, not {chosen}.")
    if isinstance(chosen, RingRule):
        if ring is None:
            raise ConfigError(f"{attention.name} is {span}, so it needs a SlotRule, not {chosen}.")
        return chosen
    return replace(chosen, share=float(chosen.slots)) if chosen.is_bounded else chosen
