"""The reference for eviction: a decoder's own captured graph, run with the evicted keys masked."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from ...attention.find import Attention
from ...errors import UnsupportedOpError
from ...graph.nodes import operator_name
from ...store.layer import Layer
from ...store.slots import SlotRule

SDPA, SOFTMAX = "aten::scaled_dot_product_attention", ("aten::softmax", "aten::_softmax")


def logits_without_evicted(
    attentions: Sequence[Attention], layers: Sequence[Layer], ids: torch.Tensor, ends: Sequence[int]
) -> torch.Tensor:
    """Logits [B, S, V] of ids [B, S] read in pieces that end at `ends`, evicted keys masked away.

    The graph is the model's, not the rewritten one: the mask goes into each scaled_dot_product_attention
    and each attention's softmax, whatever else they compute.
    """
    graph = attentions[0].node.graph
    masks = {
        _masked_node(attention): _shown(layer.rule, layer.query_heads, layer.kv_heads, ends)
        for attention, layer in zip(attentions, layers, strict=True)
        if isinstance(layer.rule, SlotRule)
    }
    position = torch.arange(ids.shape[1]).expand(len(ids), -1)
    assert graph.owning_module is not None
    with torch.no_grad():
        return _Masking(graph.owning_module, masks).run(ids, position)


class _Masking(fx.Interpreter):
    """Runs a graph with some attentions seeing fewer keys: [Hq, S, S] bool for each."""

    def __init__(self, module: fx.GraphModule, masks: dict[fx.Node, torch.Tensor]) -> None:
        super().__init__(module)
        self._masks = masks

    def run_node(self, node: fx.Node) -> Any:
        if node not in self._masks:
            return super().run_node(node)
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        run = _sdpa if operator_name(node) == SDPA else _softmax
        return run(self._masks[node], *args, **kwargs)


def _sdpa(
    shown: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> torch.Tensor:
    if is_causal:
        attn_mask = torch.ones(shown.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is None or attn_mask.dtype == torch.bool:
        mask = shown if attn_mask is None else shown & attn_mask
    else:
        mask = attn_mask.masked_fill(~shown, float("-inf"))
    return F.scaled_dot_product_attention(query, key, value, mask, **options)


def _softmax(
    shown: torch.Tensor, logits: torch.Tensor, dim: int, *dtype: Any, **options: Any
) -> torch.Tensor:
    """Heads may be merged with the batch or split in groups, and sinks stand in columns after the keys."""
    rows = logits.numel() // logits.shape[-1]
    shown = F.pad(shown, (0, logits.shape[-1] - shown.shape[-1]), value=True)
    batch = rows // (shown.shape[0] * shown.shape[1])
    shown = shown.expand(batch, *shown.shape).reshape(logits.shape)
    return torch.softmax(logits.masked_fill(~shown, float("-inf")), dim, **options)


def _masked_node(attention: Attention) -> fx.Node:
    """Where the attention's keys can be masked: the operator's call, else the nearest softmax before it."""
    pending = [attention.node]
    for node in pending:
        if operator_name(node) == SDPA or operator_name(node) in SOFTMAX:
            return node
        pending.extend(node.all_input_nodes)
    raise UnsupportedOpError(
        f"{attention.name}: the census masks evicted keys in scaled_dot_product_attention and softmax "
        "alone, and this attention is neither: compare it by a test of its own."
    )


def _shown(rule: SlotRule, query_heads: int, kv_heads: int, ends: Sequence[int]) -> torch.Tensor:
    """The keys that each query sees, [Hq, S, S] bool.

    A chunk sees the store as it stood and itself causally; a single token is stored first.
    """
    place = torch.arange(ends[-1])
    score = rule.score(torch.empty(1, kv_heads, ends[-1], 1), torch.empty(0), place[None], None)
    seen = torch.zeros(kv_heads, ends[-1], ends[-1], dtype=torch.bool)
    for a, b in pairwise(ends):
        before = _kept(rule, score[0], b if b - a == 1 else a)
        seen[:, a:b] = before[:, None] | ((place >= a) & (place <= place[a:b, None]))
    return seen.repeat_interleave(query_heads // kv_heads, dim=0)


def _kept(rule: SlotRule, score: torch.Tensor, seen: int) -> torch.Tensor:
    """The keys held after `seen` tokens, [Hkv, S] bool: all of them ranked anew."""
    place = torch.arange(seen)
    protected = (place < rule.sinks) | (place >= seen - rule.recent)
    rank = score[:, :seen].masked_fill(protected, float("inf"))
    best = rank.topk(min(seen, rule.slots)).indices
    return torch.zeros_like(score, dtype=torch.bool).scatter(-1, best, True)
