"""qfpass.compile, step by step: capture and prove, decide, rewrite, outline, lower, attach."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from .capture.computation_digest import digest_computation
from .capture.decoder_call import own_context_length
from .capture.original import original_of
from .capture.quantised_linears import as_compiled, require_alike
from .capture.ranks import Ranks
from .capture.suitable import refuse_unsuitable
from .config import Config
from .decoder.decoder import Decoder
from .decoder.overflow import find_rotations
from .ends.model_ends import ModelEnds
from .errors import ConfigError
from .filters import QFilters, TrainedFilters
from .filters.calibrate import model_fingerprint
from .graph.captured import vocabulary_of
from .graph.stages import Stages
from .graph.tracing import without_autocast
from .kernels.kernel import Kernel
from .layer_rules import ChooseRule, layer_rule
from .lowering.decoder_graphs import Graphs
from .machine import require_machine
from .model.attach import attach
from .model.changes import DecoderVersions
from .model.compiled_decoder import CompiledDecoder
from .model.early_exit import EarlyExits
from .model.returned import output_maker
from .plan import (
    compiles_for_processor,
    filters_for,
    layers_of_whole,
    make_plan,
    make_rules,
    make_sites,
    own_loops_for,
)
from .proof.prove import capture_and_prove
from .regions.outline import Outlined, outline, uncut
from .regions.packed_weights import Known, pack_weights
from .regions.step_linears import stream_weights
from .rewriting.rewrite import rewrite
from .rewriting.site import layers_of
from .store.scores import Score, score_named
from .store.store_kind import StoreKind
from .switches import Switches
from .upstream.versions import warn_if_untested
from .vision_language.parts import vision_language_parts
from .waits import Wait


def compile(
    model: nn.Module,
    *,
    ratio: float | None = None,
    budget: int | None = None,
    context_length: int | None = None,
    recent: int | None = None,
    sinks: int = 4,
    score: str | Score | None = None,
    store_dtype: torch.dtype | str | None = "auto",
    store: type[StoreKind] | None = None,
    chunk: int | None = None,
    filters: QFilters | TrainedFilters | str | Path | None = None,
    skip_layers: Sequence[int] = (),
    overflow: str = "error",
    kernel: Kernel | None = None,
    backend: Any = "inductor",
    verify: bool = True,
    switches: Switches = Switches(),
    **compile_options: Any,
) -> CompiledDecoder:
    """A decoder like `model` whose attention keeps a fixed number of keys, however long the text.

    Args:
        model: any causal decoder (input_ids [B, S], position_ids [B, S]) -> logits or .logits, in eval
            mode. Models of transformers may lack a head, or be for sequence classification. The model is left
            as it was, and shares its parameters. If it is a compiled model, its original is compiled.
        ratio: how many times smaller, in bytes, the store is than all keys and values of `context_length`
            tokens. If `store_dtype` or `store` makes a slot smaller, more slots fit. 1, the default, keeps
            every key.
        budget: slots per key/value head, instead of `ratio`.
        context_length: tokens a session may see; by default the model's own.
        recent: how many of the newest tokens are never evicted. By default half of the slots for the
            published score; for the trained score an eighth of up to 256 slots, growing to half of 1,024 or
            more; a quarter for the others.
        sinks: first tokens never evicted.
        score: which key goes first, a `qfpass.Score` of your own or a name: "published" (Godey et al. 2025,
            arXiv 2503.02812), "trained" (by `qfpass.train`), "recency", "knorm" or "random"; by default what
            the filters are for.
        store_dtype: how keys and values are stored. None: in the model's dtype. torch.int8: in eight bits,
            which holds some 3.6 times as many tokens as float32 in the same bytes, and 1.8 times as many as
            bfloat16. "int8-int4": keys in eight bits and values in four, 4.6 and 2.4 times as many. "auto":
            with a `ratio` and on a processor, the fewest bits that don't measurably change this model's
            predictions, otherwise the model's dtype. Layers with a window, and `skip_layers`, always use
            the model's dtype.
        store: what a slot holds of a token, a `qfpass.StoreKind` of your own, instead of `store_dtype`.
        chunk: tokens of a prompt read at a time; by default 512, on a GPU 2,048, or one less than the slots,
            if fewer.
        filters: Q-Filters or trained filters, a folder or hub repository of them; by default Q-Filters are
            found or made.
        skip_layers: attentions, counted from 0, that keep every key.
        overflow: what happens past `context_length` tokens. "error" refuses the call, "continue" lets
            positions keep counting, "rerotate" moves stored keys to earlier positions (for plain rotary
            embeddings).
        kernel: attention of your own, used instead of every kernel; `qfpass.kernels` has its contract.
        backend: a torch.compile backend by name or callable; "eager" compiles nothing.
        verify: compare the rewritten graph with `model` before returning.
        switches: which optimisations are used; see `qfpass.Switches`.
        compile_options: further arguments of torch.compile, such as `mode` or `options`.

    Returns:
        A model that is called, and generates, as `model` does; `.session()` makes sessions.

    Raises:
        QFPassError: see `qfpass.errors`.
    """

    def settings() -> Config:
        named = None if score is None else score_named(score)
        return Config(
            ratio, budget, context_length, recent, sinks, named, store_dtype, store, chunk, filters,
            skip_layers, overflow, kernel, backend, verify, switches, compile_options,
        )  # fmt: skip

    return build(model, Ranks.of_model(model).together(settings))


def build(
    model: nn.Module, config: Config, batch: int | None = None, choose_rule: ChooseRule = layer_rule
) -> CompiledDecoder:
    """Compile `model` as `config` says, and put the decoder in the place of its forward.

    Args:
        batch: the number of rows of every call, for a model that is made for that number alone.
        choose_rule: how each layer keeps keys.
    """
    warn_if_untested()
    whole = model = original_of(model)
    Ranks.of_model(model).together(lambda: _refuse(whole, config))
    parts = vision_language_parts(model)
    if parts is not None:
        model = parts.decoder
        if parts.has_axes and config.overflow == "rerotate":
            raise ConfigError("overflow='rerotate' moves positions of one axis: use another for this model.")

    def make(config: Config) -> tuple[Decoder, str | None]:
        with without_autocast(model):
            Ranks.of_model(model).together(lambda: require_alike(model))
        with as_compiled(model):
            return make_decoder(model, config, batch, choose_rule)

    warn_of_longer_texts(model, config)
    with Wait(f"preparing {type(model).__name__}", "a minute or two for a new model, then seconds"):
        decoder, digest = make(config)
    length = config.context_length or own_context_length(model)

    def digest_now() -> str | None:
        if digest is None or length is None:
            return None
        with as_compiled(model):
            known = digest_computation(model, batch, length, layers=False)
        return known.digest if known else None

    def compile_anew() -> Decoder:
        return make(replace(config, filters=decoder.filters) if decoder.filters else config)[0]

    changes = DecoderVersions(model, decoder, digest, digest_now, compile_anew)
    if parts is not None:
        # Imported here, since it imports transformers' generation, which takes seconds.
        from .vision_language.compiled_model import attach_vision_language

        return attach_vision_language(whole, parts, decoder, changes)
    early_exits = EarlyExits(model, lambda first, settings: build(first, settings, batch, choose_rule))
    return attach(model, decoder, changes, output_maker(model, decoder.device), early_exits)


def _refuse(model: nn.Module, config: Config) -> None:
    """Raise where the model can't be compiled whatever its forward does, or this machine can't compile."""
    refuse_unsuitable(model)
    if config.backend == "inductor":
        require_machine(compiles_for_processor(model, config), config.switches)


def warn_of_longer_texts(model: nn.Module, config: Config) -> None:
    """Warn where texts may be longer than the model was made for, at positions that it doesn't know."""
    own, asked = own_context_length(model), config.context_length
    if own is not None and asked is not None and asked > own and config.overflow != "rerotate":
        warnings.warn(
            f"qfpass: context_length is {asked:,} tokens, but the model was made for {own:,}: beyond "
            'those, it may write nonsense. Without context_length, and with overflow="rerotate", texts may '
            "be as long at positions that it knows.",
            stacklevel=4,
        )


def make_decoder(
    model: nn.Module, config: Config, batch: int | None, choose_rule: ChooseRule
) -> tuple[Decoder, str | None]:
    """The compiled decoder, and a digest of what the model computes (None if it can't be told)."""
    length = config.context_length or own_context_length(model)
    with Wait("tracing and proving the model", "half a minute or so, less once its graph is kept"):
        proven = capture_and_prove(model, batch, config, length)
    captured, ranks = proven.captured, proven.ranks
    plan = make_plan(model, config, proven)
    own_loops = ranks.together(lambda: own_loops_for(model, plan.config))
    rules = ranks.together(lambda: make_rules(captured, plan, choose_rule))
    sites = ranks.together(lambda: make_sites(captured, plan, rules, own_loops))
    filters = filters_for(model, proven, plan, rules)

    def outlined_of(module: fx.GraphModule) -> Outlined:
        return outline(module)

    packed: Known = {}

    def graphs_of(outlined: Outlined) -> Graphs:
        if own_loops:
            stream_weights(outlined)
            outlined = pack_weights(outlined, packed)
        return Graphs(outlined, plan.config, longest=plan.sizes.longest_chunk, own_loops=own_loops)

    rewritten = ranks.together(lambda: rewrite(captured, sites))
    outlined = ranks.together(lambda: outlined_of(rewritten))
    if not ranks.all(outlined.head is not None):  # one process may have a graph that can't be cut
        outlined = uncut(rewritten)

    def finish() -> Decoder:
        layers = layers_of_whole(captured, plan, rules, sites)
        rotations = find_rotations(rewritten, sites, layers, plan.sizes, plan.config)
        other_ends = None if isinstance(captured.part, Stages) else ModelEnds(
            model, captured, proven.attentions, rewritten, lambda module: graphs_of(outlined_of(module)),
            config.kernel, say=config.backend == "inductor",
        )  # fmt: skip
        return Decoder(
            graphs_of(outlined), layers_of(sites), filters, plan.sizes, plan.config,
            captured.device, captured.dtype, model_fingerprint(captured, proven.attentions),
            vocabulary_of(captured), rotations, proven.skipped, other_ends, captured.part, layers,
        )  # fmt: skip

    return ranks.together(finish), proven.digest
