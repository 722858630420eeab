"""Baseline scores that need all queries or all keys at once, which a compiled store doesn't have.

The captured graph reads the context, then each head's keys are scored and evicted once. The question and the
answer read the keys that are left and evict nothing more, as in kvpress (github.com/NVIDIA/kvpress). First
tokens, recent window and budget are those of the compiled stores.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

from ...attention.find import Attention, find_attentions
from ...capture.export import capture
from ...errors import InputError
from ...graph.captured import Captured
from ...upstream.cache import cache_kwargs
from .footprint import Footprint
from .rotary import Rotary
from .text_reader import cache_nbytes

SNAPKV_WINDOW, SNAPKV_POOL = 64, 5  # queries observed, keys pooled over
FUTURE = 512  # positions that Expected Attention looks ahead
SINKS = 4  # tokens that Expected Attention leaves out of its statistics


@dataclass(frozen=True)
class ContextHeads:
    """The query, key and value that one layer's attention read of a context, after rotation.

    query [B, Hq, S, D], key [B, Hkv, S, D], value [B, Hkv, S, Dv]; logits are `scale * <query, key>`.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scale: float
    model: nn.Module

    def grouped(self, query: torch.Tensor) -> torch.Tensor:
        """query [B, Hq, ...] as [B, Hkv, G, ...], float32."""
        return query.float().unflatten(1, (self.key.shape[1], -1))


def snapkv(heads: ContextHeads) -> torch.Tensor:
    """Scores [B, Hkv, S]: the attention of the last 64 queries to a key, pooled over 5 neighbours.

    Li et al. 2024, arXiv 2404.14469; the group's heads are averaged.
    """
    length = heads.key.shape[2]
    window = min(SNAPKV_WINDOW, length)
    query = heads.grouped(heads.query[:, :, -window:])
    logits = torch.einsum("bhgqd,bhkd->bhgqk", query, heads.key.float()) * heads.scale
    future = torch.ones(window, length, dtype=torch.bool, device=logits.device).triu(length - window + 1)
    attention = logits.masked_fill(future, float("-inf")).softmax(-1).mean(dim=(2, 3))
    return F.avg_pool1d(attention, SNAPKV_POOL, stride=1, padding=SNAPKV_POOL // 2)


def expected_attention(heads: ContextHeads) -> torch.Tensor:
    """Scores [B, Hkv, S]: a key's expected attention from the next 512 positions, times its value's norm.

    Devoto et al. 2025, arXiv 2510.00636: queries before rotation are taken as Gaussian, so
    E exp<q, k> = exp(<mean, k> + <k, cov k> / 2), with the rotation averaged over the future.
    """
    length = heads.key.shape[2]
    rotary = Rotary(heads.model, heads.query.shape[-1])
    plain = rotary.undo(heads.query.float(), torch.arange(length, device=heads.query.device))
    plain = plain[:, :, min(SINKS, length - 1) :]
    turn = rotary.mean_matrix(torch.arange(length, length + FUTURE, device=plain.device))
    mean = plain.mean(dim=2)
    centred = plain - mean[:, :, None]
    covariance = centred.transpose(-1, -2) @ centred / plain.shape[2]
    mean, covariance = mean @ turn.T, turn @ covariance @ turn.T
    key = heads.key.float()
    log = torch.einsum("bhgd,bhkd->bhgk", heads.grouped(mean), key) * heads.scale
    spread = torch.einsum("bhkd,bhgde,bhke->bhgk", key, heads.grouped(covariance), key)
    weights = (log + spread * heads.scale**2 / 2).softmax(-1).mean(dim=2)
    return weights * torch.linalg.vector_norm(heads.value.float(), dim=-1)


def keydiff(heads: ContextHeads) -> torch.Tensor:
    """Scores [B, Hkv, S]: minus the cosine between a key and the mean direction of all keys.

    Park et al. 2025, arXiv 2504.15364. The mean needs every key, so a key's score would change as text
    comes in: it can't be a score of the store.
    """
    direction = F.normalize(heads.key.float(), dim=-1)
    return -F.cosine_similarity(direction, direction.mean(dim=2, keepdim=True), dim=-1)


BASELINES: dict[str, Callable[[ContextHeads], torch.Tensor]] = {
    "snapkv": snapkv,
    "expected_attention": expected_attention,
    "keydiff": keydiff,
}


class Baseline:
    """A Hugging Face model that evicts by one baseline's score; captured once for all budgets."""

    def __init__(self, model: nn.Module, score: str) -> None:
        if not isinstance(model, PreTrainedModel):
            raise InputError(f"{score} runs on Hugging Face models, not on {type(model).__name__}.")
        self.model, self.score = model, BASELINES[score]
        captured = capture(model)
        self.attentions = find_attentions(captured, None)
        sliding = [a.name for a in self.attentions if a.span.reach is not None]
        changed = [a.name for a in self.attentions if not a.form.is_plain]
        if changed:
            raise InputError(
                f"{score} estimates plain logits, but those of {type(model).__name__} are capped or biased, "
                f"or have a sink ({changed[0]}): leave it out."
            )
        if sliding or len(self.attentions) != model.config.get_text_config().num_hidden_layers:
            raise InputError(
                f"{score} needs one attention a layer, each over the whole text, but {type(model).__name__} "
                f"has {len(self.attentions)}, of which {len(sliding)} see a window or chunk: leave it out."
            )
        self.read_heads = _with_taps(captured, self.attentions)

    def reader(self, slots: int, recent: int | None, sinks: int) -> "BaselineReader":
        """A reader that keeps `slots` keys a head of its prefill."""
        return BaselineReader(self, slots, max(1, slots // 4) if recent is None else recent, sinks)


class BaselineReader:
    """Reads one text: evicts once, after the prefill, and keeps all later keys."""

    streams = False

    def __init__(self, baseline: Baseline, slots: int, recent: int, sinks: int) -> None:
        self._baseline, self.slots = baseline, slots
        self._recent, self._sinks = recent, sinks
        self._cache, self._seen = DynamicCache(), 0

    @property
    def footprint(self) -> Footprint:
        """Slots, and the bytes of the cache with the question and the answer."""
        return Footprint(self.slots, cache_nbytes(self._cache))

    @torch.no_grad()
    def prefill(self, ids: torch.Tensor) -> None:
        """Read ids [B, S] and evict once."""
        if self._seen:
            raise InputError("a baseline compresses one context, in one call of prefill.")
        ids = ids.to(self._baseline.model.device)
        self._seen = ids.shape[1]
        positions = torch.arange(self._seen, device=ids.device).expand(len(ids), -1)
        self._baseline.read_heads(ids, positions, self._keep)

    @torch.no_grad()
    def read(self, ids: torch.Tensor, keep: int = 0) -> torch.Tensor:
        """See `qfpass.tools.evaluate.text_reader.TextReader`."""
        model: Any = self._baseline.model
        ids = ids.to(model.device)
        positions = torch.arange(self._seen, self._seen + ids.shape[1], device=ids.device)
        self._seen += ids.shape[1]
        return model(
            input_ids=ids,
            position_ids=positions.expand(len(ids), -1),
            **cache_kwargs(self._cache),
            use_cache=True,
            logits_to_keep=keep,
        ).logits

    def _keep(self, site: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        attention = self._baseline.attentions[site]
        if attention.heads_last:
            query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        length = key.shape[2]
        heads = ContextHeads(query, key, value, attention.form.scale, self._baseline.model)
        score = self._baseline.score(heads)
        place = torch.arange(length, device=key.device)
        score = score.masked_fill((place < self._sinks) | (place >= length - self._recent), float("inf"))
        kept = score.topk(min(self.slots, length), dim=-1).indices.sort(dim=-1).values[..., None]
        key = key.gather(2, kept.expand(-1, -1, -1, key.shape[-1]))
        value = value.gather(2, kept.expand(-1, -1, -1, value.shape[-1]))
        self._cache.update(key, value, site)


Take = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], None]


def _hand_over(take: Take, site: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    take(site, query, key, value)


def _with_taps(captured: Captured, attentions: list[Attention]) -> fx.GraphModule:
    """(input_ids, position_ids, take): calls `take` at every attention and ends at the last."""
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.graph_copy(captured.module.graph, copies)
    graph.output(copies[attentions[-1].node])
    graph.eliminate_dead_code()
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    with graph.inserting_after(inputs[-1]):
        take = graph.placeholder("take")
    for a in attentions:
        with graph.inserting_before(copies[a.node]):
            operands = (copies[a.query], copies[a.key], copies[a.value])
            graph.call_function(_hand_over, (take, a.index, *operands))
    return fx.GraphModule(captured.module, graph)
