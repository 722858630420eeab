"""Decide, before a model's graph is rewritten, its sizes, filters, loops and each layer's rule."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from .attention.find import Attention
from .attention.spread_heads import attentions_of_whole
from .capture.decoder_call import own_context_length
from .choose_filters import find_or_make_filters, load_given_filters
from .choose_store import SMOOTHED, choose_store
from .config import DEFAULT_CHUNK, DEFAULT_CHUNK_ON_GPU, Config
from .filters import QFilters, TrainedFilters, filters_digest
from .filters.self_written import TOKENS, OwnText
from .graph.captured import Captured
from .graph.shards import Shards
from .kernels.cpu import lowerings
from .layer_rules import ChooseRule, layer_shares, shares_within, slots_per_model_slot
from .proof.prove import Proven
from .rewriting.site import Site
from .rewriting.uncompressed import kernel_call_of
from .sizes import Sizes
from .store.kv_form import KVForm
from .store.layer import Layer, Rule
from .store.scores import SCORES, score_named
from .store.smoothing import digest_of
from .store.try_score import try_score
from .store.try_store import try_store

MOST_SLOTS_A_TOKEN = 64.0  # more than fit in the bytes of a token in the model's dtype, whatever the store


@dataclass(frozen=True)
class Plan:
    """The settings as decided for one model.

    Attributes:
        config: the settings, with score and store decided.
        attentions: this process's.
        sizes: in tokens and slots.
        shares: each attention's part of the slots, relative to the mean, of all attentions of the model.
        given: the filters that the settings gave or `qfpass.tune` made, loaded and checked; else None.
        smoothing: for each attention of the model the factors of its keys, of all heads, where stores hold
            them in few bits; else None.
        own_text: what the model writes to be measured on.
    """

    config: Config
    attentions: Sequence[Attention]
    sizes: Sizes
    shares: tuple[float, ...]
    given: QFilters | TrainedFilters | None
    smoothing: tuple[torch.Tensor, ...] | None
    own_text: OwnText


def make_plan(model: nn.Module, config: Config, proven: Proven) -> Plan:
    """The score, sizes and shares for a model, equal in all processes that run it together.

    Raises:
        ConfigError: the settings can't work for this model.
        FilterFileError, FilterMismatchError: the filters can't be read, or belong to another model.
        RanksError: the processes decide differently.
    """
    attentions, ranks = proven.attentions, proven.ranks
    whole = attentions_of_whole(proven.captured, attentions)
    given = ranks.together(lambda: load_given_filters(config, proven.captured, attentions))
    if not ranks.all(given is not None):  # tuned filters may lie in one process's cache alone
        given = None
    config = replace(config, score=config.score or score_named(given.score if given else "published"))
    assert config.score is not None
    captured = proven.captured
    forms = {KVForm.of(a, captured.dtype, a.device or captured.device) for a in whole}
    if config.score not in SCORES.values():
        for form in forms:
            try_score(config.score, form)
    if config.store is not None:
        for form in forms:
            try_store(config.store, form)
    shares, own_length = layer_shares(given, config, whole), own_context_length(model)
    # Keys that move need room for a chunk behind them.
    takes_more = captured.device.type == "cuda" and config.overflow != "rerotate"
    default_chunk = DEFAULT_CHUNK_ON_GPU if takes_more else DEFAULT_CHUNK

    def resolve(config: Config, slots_a_token: float) -> Sizes:
        return config.resolve(own_length, len(whole), min(shares), slots_a_token, default_chunk)

    ranks.together(lambda: resolve(config, MOST_SLOTS_A_TOKEN))  # refuses before anything is measured
    length = own_length or config.context_length
    own_text = OwnText(captured, attentions, length or TOKENS, ranks)
    with ranks.in_step("measuring few bits"):
        config, smoothing = choose_store(config, captured, attentions, length, own_text, ranks)
    slots_a_token = slots_per_model_slot(whole, captured, config.store_kind)
    sizes = ranks.together(lambda: resolve(config, slots_a_token))
    shares = shares_within(shares, sizes.largest_share)
    ranks.require_same(
        {"score": str(config.score), "store": config.store_dtype, "sizes": sizes, "shares": shares}
    )
    part = captured.part
    if isinstance(part, Shards) and part.splits_heads:
        assert config.score is not None
        config = replace(config, score=config.score.over_processes(part.size, part.group.group_name))
    return Plan(config, attentions, sizes, shares, given, smoothing, own_text)


def own_loops_for(model: nn.Module, config: Config) -> bool:
    """Whether Inductor compiles this model with the package's C++ loops; it knows them from now on."""
    return compiles_for_processor(model, config) and config.switches.own_loops and lowerings.register()


def compiles_for_processor(model: nn.Module, config: Config) -> bool:
    """Whether Inductor will make C++ of this model's graphs."""
    return config.backend == "inductor" and all(p.device.type == "cpu" for p in model.parameters())


def make_rules(captured: Captured, plan: Plan, choose_rule: ChooseRule) -> list[Rule]:
    """The rule of each layer of the whole model."""
    whole = attentions_of_whole(captured, plan.attentions)
    return [choose_rule(a, plan.config, plan.sizes, x) for a, x in zip(whole, plan.shares, strict=True)]


def make_sites(captured: Captured, plan: Plan, rules: Sequence[Rule], own_loops: bool) -> list[Site]:
    """The site of each attention of this process: its rule and its kernel call."""
    own = plan.config.kernel
    streams = plan.config.backend == "inductor" and own is None
    sites = []
    for attention in plan.attentions:
        rule = rules[attention.index]
        call = replace(kernel_call_of(captured, attention, kernel=own), streams=streams, own_loops=own_loops)
        smoothing = _smoothing(plan, attention, rule)
        if smoothing is None:
            sites.append(Site(attention, rule, call))
            continue
        factors = captured.part.own_heads(smoothing, 0) if captured.part else smoothing
        sites.append(Site(attention, rule, call, factors, digest_of(smoothing)))
    return sites


def _smoothing(plan: Plan, attention: Attention, rule: Rule) -> torch.Tensor | None:
    """The factors of all heads of a layer's keys; None if they are held as they are."""
    return plan.smoothing[attention.index] if plan.smoothing and rule.store_type in SMOOTHED else None


def layers_of_whole(
    captured: Captured, plan: Plan, rules: Sequence[Rule], sites: Sequence[Site]
) -> list[Layer]:
    """The layers of the whole model, of which this process may have those of `sites` alone."""
    own, layers = {site.attention.index: site.layer for site in sites}, list[Layer]()
    for a, rule in zip(attentions_of_whole(captured, plan.attentions), rules, strict=True):
        factors = _smoothing(plan, a, rule)
        digest = "" if factors is None else digest_of(factors)
        sizes = a.query_heads, a.kv_heads, a.head_dim, a.value_dim
        elsewhere = Layer(a.index, a.name, str(a.span), *sizes, rule, "in another process", digest, None)
        layers.append(own.get(a.index, elsewhere))
    return layers


def filters_for(
    model: nn.Module, proven: Proven, plan: Plan, rules: Sequence[Rule]
) -> QFilters | TrainedFilters | None:
    """The filters that the layers' scores read, on the model's device; None if no score reads filters.

    They are of all layers and heads of the model, also where a process has a part of them.
    """
    if not any(rule.needs_filters for rule in rules):
        return None
    captured = proven.captured
    ranks = proven.ranks
    with ranks.in_step("making filters"):
        chosen = plan.given or find_or_make_filters(
            model, captured, proven.attentions, plan.sizes.context_length, plan.own_text, ranks
        )
    if captured.part is not None:  # else each process has filters of its own heads
        ranks.require_same({"filters": filters_digest(chosen)})
    return chosen.to(captured.device)
