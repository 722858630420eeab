"""qfpass.compile: capture, find, rewrite, lower, attach."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .choose_filters import find_or_make_filters, given_filters, layer_shares, within
from .config import Config, Sizes
from .errors import ConfigError
from .filters import QFilters, TrainedFilters
from .filters.calibrate import model_fingerprint
from .graph.attention import Attention
from .graph.call import own_context_length
from .graph.compact import compact_weights as with_compact_weights
from .graph.identity import identity
from .graph.one_token import stream_weights
from .graph.original import original_of
from .graph.regions import outline
from .graph.rewrite import Rule, Site, rewrite
from .graph.suitable import refuse_unsuitable
from .graph.vocabulary import vocabulary
from .kernels import lowerings
from .proven import capture_and_prove
from .runtime.attach import attach
from .runtime.changes import Changes
from .runtime.decoder import Decoder
from .runtime.model import CompiledDecoder
from .runtime.overflow import find_turns
from .runtime.returned import returned_by
from .runtime.uncompressed import reading_of
from .store.ring import RingRule
from .store.slots import SLOT_NBYTES, AnySlots, SlotRule, Slots, store_type
from .switches import Switches
from .upstream.vector_isa import start_trials
from .upstream.versions import warn_if_untested

ChooseRule = Callable[[Attention, Config, Sizes, float], Rule]


def compile(
    model: nn.Module,
    *,
    ratio: float | None = None,
    budget: int | None = None,
    context_length: int | None = None,
    recent: int | None = None,
    sinks: int = 4,
    score: str | None = None,
    store_dtype: torch.dtype | None = None,
    chunk: int | None = None,
    filters: QFilters | TrainedFilters | str | Path | None = None,
    skip_layers: Sequence[int] = (),
    overflow: str = "error",
    compact_weights: bool = False,
    backend: Any = "inductor",
    verify: bool = True,
    switches: Switches = Switches(),
    **compile_options: Any,
) -> CompiledDecoder:
    """A decoder like `model` whose attention keeps a fixed number of keys, however long the text.

    Args:
        model: any causal decoder (input_ids [B, S], position_ids [B, S]) -> logits or .logits, in eval
            mode. It is left as it was; its parameters are shared. Of a compiled one, the original is taken.
        ratio: slots = ceil(context_length / ratio), or as many more as fit in their bytes if `store_dtype` is
            smaller than the model's; 1, the default, keeps every key.
        budget: slots per key/value head, instead of `ratio`.
        context_length: tokens a session may see; by default the model's own.
        recent: newest tokens never evicted; by default a half of the slots for the published score, an
            eighth of up to 256 growing to half of 1,024 and more for the trained, a quarter for the others.
        sinks: first tokens never evicted.
        score: which key goes first: "published" (Godey et al. 2025, arXiv 2503.02812), "trained" (by
            `qfpass.train`), "recency", "knorm" or "random"; by default what the filters are for.
        store_dtype: of the stored keys and values: by default the model's own, or torch.int8, which holds
            some 3.6 times as many tokens in the bytes of float32 and 1.8 times in those of bfloat16. Windows
            and `skip_layers` stay in the model's.
        chunk: tokens of a prompt read at a time; by default 512, or the slots if fewer.
        filters: Q-Filters or trained filters, a folder or hub repository of them; by default Q-Filters are
            found or made.
        skip_layers: attentions, counted from 0, that keep every key.
        overflow: past `context_length` tokens, "error" refuses, "continue" lets positions go on, and
            "rerotate" moves stored keys to earlier positions, if the model's are plain rotary.
        compact_weights: for steps of a single text on a processor, keep copies of float32 weights in fewer
            bits where these hold exactly the same numbers: of a checkpoint in half precision, or a
            dequantised GGUF (Q8_0, Q4_0, Q4_1, Q5_0, Q5_1). `qfpass.report` tells of how many. The weights
            must not change then: a call refuses to run if one has, but can't see what is written to `.data`.
        backend: a torch.compile backend by name or callable; "eager" compiles nothing.
        verify: compare the rewritten graph with `model` before returning.
        switches: which optimisations are used; see `qfpass.Switches`.
        compile_options: further arguments of torch.compile, such as `mode` or `options`.

    Returns:
        A model that is called, and generates, as `model` does; `.session()` makes sessions.

    Raises:
        QFPassError: see `qfpass.errors`.
    """
    config = Config(
        ratio, budget, context_length, recent, sinks, score, store_dtype, chunk, filters, tuple(skip_layers),
        overflow, compact_weights, backend, verify, switches, compile_options,
    )  # fmt: skip
    return build(model, config)


def build(
    model: nn.Module, config: Config, batch: int | None = None, rule: ChooseRule | None = None
) -> CompiledDecoder:
    """The five steps.

    Args:
        batch: for a model that runs on that number of rows only.
        rule: decides otherwise than the config how each layer keeps keys.
    """
    warn_if_untested()
    model = original_of(model)
    refuse_unsuitable(model)
    decoder, digits = _decoder_of(model, config, batch, rule)
    returned = returned_by(model, decoder.device)
    length = config.context_length or own_context_length(model)

    def identify() -> str | None:
        if digits is None or length is None:
            return None
        with torch.autocast(_device_type(model), enabled=False):
            known = identity(model, batch, length, layers=False, lean=config.switches.lean_tracing)
        return known.digits if known else None

    def compile_anew() -> Decoder:
        own = replace(config, filters=decoder.filters) if decoder.filters else config
        return _decoder_of(model, own, batch, rule)[0]

    return attach(model, decoder, Changes(model, decoder, digits, identify, compile_anew), returned)


def _decoder_of(
    model: nn.Module, config: Config, batch: int | None, rule: ChooseRule | None
) -> tuple[Decoder, str | None]:
    """All but the last of the steps; with the digits of what the model computes."""
    with torch.autocast(_device_type(model), enabled=False):
        return _decoder_without_autocast(model, config, batch, rule)


def _device_type(model: nn.Module) -> str:
    return next((parameter.device.type for parameter in model.parameters()), "cpu")


def _decoder_without_autocast(
    model: nn.Module, config: Config, batch: int | None, rule: ChooseRule | None
) -> tuple[Decoder, str | None]:
    lowered = config.backend == "inductor"
    on_processor = lowered and all(parameter.device.type == "cpu" for parameter in model.parameters())
    if on_processor and config.switches.vector_trials:
        start_trials()
    own_length = own_context_length(model)
    proven = capture_and_prove(model, batch, config, config.context_length or own_length)
    captured, attentions, ranks = proven.captured, proven.attentions, proven.ranks
    given = ranks.together(lambda: given_filters(config, attentions))
    config = replace(config, score=config.score or (given.score if given else "published"))
    shares = layer_shares(given, config, attentions)
    density = slots_a_token(attentions, captured.dtype, config.store_dtype)
    sizes = ranks.together(lambda: config.resolve(own_length, len(attentions), min(shares), density))
    choose = rule or _rule
    shares = within(shares, sizes.largest_share)
    ranks.require_same({"score": config.score, "sizes": sizes, "shares": shares})
    if config.compact_weights and not on_processor:
        raise ConfigError(f"compact_weights is for processors, not for {captured.device.type}: leave it out.")
    own_loops = on_processor and config.switches.own_loops and lowerings.register()
    if config.compact_weights and not own_loops:
        needed = "a processor with vector instructions, and a version of torch that takes loops of ours"
        if not config.switches.own_loops:
            needed = "the switch own_loops, which is off"
        raise ConfigError(f"compact_weights needs {needed}: leave it out.")
    sites = [
        Site(a, choose(a, config, sizes, share), replace(reading, streams=lowered, own_loops=own_loops))
        for a, share in zip(attentions, shares, strict=True)
        for reading in [reading_of(captured, a)]
    ]
    chosen = None
    if any(site.rule.needs_filters for site in sites):
        chosen = given or find_or_make_filters(model, captured, attentions, sizes.context_length, ranks)
        chosen = chosen.to(captured.device)
    rewritten = rewrite(captured, sites)
    turns = find_turns(rewritten, sites, sizes, config)
    outlined = outline(rewritten, config.switches.lean_tracing)
    if own_loops:
        stream_weights(outlined)
    if config.compact_weights:
        outlined = with_compact_weights(outlined)
    decoder = Decoder(
        outlined, sites, chosen, sizes, config, captured.device, captured.dtype,
        model_fingerprint(captured, attentions), vocabulary(captured),
        turns, proven.skipped,
    )  # fmt: skip
    return decoder, proven.digits


def _rule(attention: Attention, config: Config, sizes: Sizes, share: float) -> Rule:
    """How a layer keeps keys: a ring of its window or chunk, every key, or the best by score."""
    reach = attention.span.reach
    if reach is not None and (reach < sizes.context_length or config.overflow != "error"):
        return RingRule(reach, chunked=attention.span.chunk is not None)
    skipped = attention.index in config.skip_layers
    if skipped or sizes.slots >= sizes.context_length:
        return SlotRule(
            sizes.context_length, recent=1, sinks=0, score="recency", is_bounded=False,
            store_dtype=None if skipped else config.store_dtype,
        )  # fmt: skip
    assert config.score is not None
    return SlotRule(
        sizes.slots_of(share), sizes.recent, sizes.sinks, config.score, share=share,
        store_dtype=config.store_dtype,
    )  # fmt: skip


def slots_a_token(
    attentions: Sequence[Attention], dtype: torch.dtype, store_dtype: torch.dtype | None
) -> float:
    """Slots of a store in `store_dtype` that take the bytes of one in the model's, scores and all."""

    def nbytes(kind: type[AnySlots]) -> int:
        return sum(
            a.kv_heads * (kind.slot_nbytes(a.head_dim, a.value_dim, dtype) + SLOT_NBYTES) for a in attentions
        )

    return nbytes(Slots) / nbytes(store_type(store_dtype))
