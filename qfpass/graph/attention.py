"""Find: every attention in a captured graph, read by data flow, with what rewriting needs to know."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import fx

from ..errors import NoAttentionError, UnsupportedOpError
from .calls import OPERATORS, Call, operator_name, site_name
from .capture import Captured
from .dependence import SHAPE_ONLY, text_dependent
from .mask import constant
from .mixing import mixing_reason
from .products import VIEWS
from .softmax import SOFTMAX, read_softmax
from .span import Meaning, Span, learn_meaning

aten = torch.ops.aten
Known = dict[
    tuple[tuple[fx.Node, ...], tuple[fx.Node, ...], bool], Meaning
]  # by masks, factors, beside a sink


@dataclass(frozen=True)
class Attention:
    """One attention: where it is, what it reads and how it is shaped.

    `query` [B, Hq, S, D], `key` [B, Hkv, S, D] and `value` [B, Hkv, S, Dv] are the nodes that hold the
    final tensors (positions applied, heads not repeated), or [B, S, H, D] if `heads_last`. `softcap` caps
    the scaled logits by tanh, `slopes` (one a query head) is a bias by distance, `sink` a node that holds
    one more logit a query head.
    """

    index: int
    name: str
    node: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    scale: float
    query_heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    span: Span
    softcap: float | None = None
    slopes: tuple[float, ...] | None = None
    sink: fx.Node | None = None
    heads_last: bool = False


def find_attentions(captured: Captured, context_length: int | None) -> list[Attention]:
    """All attentions in graph order.

    Raises:
        NoAttentionError: there is none.
        UnsupportedOpError: one can't be understood; names it.
    """
    known: Known = {}
    found: list[Attention] = []
    for call in _calls(captured.module):
        site = site_name(call.node)
        meaning = _meaning(captured, call, site, context_length, known)
        found.append(_record(len(found), site, call, meaning))
    if not found:
        if reason := mixing_reason(captured.module):
            raise NoAttentionError(f"no attention was found in the captured graph: {reason}.")
        raise NoAttentionError(
            "no attention was found in the captured graph: no scaled_dot_product_attention, no flash_attn, "
            "and no softmax between two matmuls."
        )
    return found


def _calls(module: fx.GraphModule) -> Iterator[Call]:
    """Every attention's call, in graph order."""
    text = text_dependent(module.graph, SHAPE_ONLY)
    for node in list(module.graph.nodes):
        name = operator_name(node)
        if name in OPERATORS:
            yield OPERATORS[name](node)
        elif name in SOFTMAX:
            call = read_softmax(module, node, text)
            if call is not None:
                yield call


def _meaning(
    captured: Captured,
    call: Call,
    site: str,
    context_length: int | None,
    known: Known,
) -> Meaning:
    if call.dropout:
        raise UnsupportedOpError(f"{site}: attention dropout ({call.dropout}) is on: call model.eval().")
    if not call.masks:
        if not call.causal:
            raise UnsupportedOpError(
                f"{site}: bidirectional attention (no mask, not causal); qfpass compiles causal decoders."
            )
        slopes = None if call.slopes is None else _constant_slopes(captured.module, call.slopes, site)
        return Meaning(Span(call.window), slopes)
    if call.causal:
        raise UnsupportedOpError(f"{site}: both a mask and is_causal, which contradict each other.")
    question = call.masks, call.factors, call.sink is not None
    if question not in known:
        known[question] = learn_meaning(captured.module, *question, site, context_length)
    return known[question]


def _record(index: int, site: str, call: Call, meaning: Meaning) -> Attention:
    heads = 2 if call.heads_last else 1
    query_shape = call.query.meta["val"].shape
    query_heads, head_dim = int(query_shape[heads]), int(query_shape[3])
    key, value = call.key, call.value
    if not call.heads_last:
        stripped = _strip_repeat(key), _strip_repeat(value)
        if _heads(stripped[0], heads) == _heads(stripped[1], heads):
            key, value = stripped
    kv_heads = _heads(key, heads)
    if _heads(value, heads) != kv_heads or query_heads % kv_heads:
        raise UnsupportedOpError(
            f"{site}: {query_heads} query, {kv_heads} key and {_heads(value, heads)} value heads "
            "don't form groups."
        )
    lengths = {str(n.meta["val"].shape[3 - heads]) for n in (call.query, key, value)}
    if len(lengths) > 1:
        raise UnsupportedOpError(
            f"{site}: queries and keys have different lengths ({', '.join(sorted(lengths))}): "
            "not plain self-attention."
        )
    if meaning.slopes is not None and meaning.span.reach is not None:
        raise UnsupportedOpError(f"{site}: a bias by distance within a window or chunk isn't supported.")
    scale = float(call.scale) if call.scale is not None else head_dim**-0.5
    value_dim = int(value.meta["val"].shape[3])
    return Attention(
        index, site, call.node, call.query, key, value, scale,
        query_heads, kv_heads, head_dim, value_dim, meaning.span, call.softcap,
        _slope_each(meaning.slopes, query_heads, site), call.sink, call.heads_last,
    )  # fmt: skip


def _constant_slopes(module: fx.GraphModule, node: fx.Node, site: str) -> tuple[float, ...]:
    slopes = constant(module, node)
    if slopes is None or slopes.dim() != 1:
        raise UnsupportedOpError(
            f"{site}: flash_attn's alibi_slopes must be constants, one a head; here they are "
            "computed from the call's inputs or differ by row."
        )
    return tuple(slopes.tolist())


def _slope_each(slopes: tuple[float, ...] | None, query_heads: int, site: str) -> tuple[float, ...] | None:
    if slopes is None or len(slopes) == query_heads:
        return slopes
    if len(slopes) == 1:
        return slopes * query_heads
    raise UnsupportedOpError(f"{site}: a bias for {len(slopes)} heads, but {query_heads} query heads.")


def _heads(node: fx.Node, dim: int) -> int:
    return int(node.meta["val"].shape[dim])


def _strip_repeat(node: fx.Node) -> fx.Node:
    """The kv heads below a repeat_kv: unsqueeze, expand, reshape, or repeat_interleave, along heads.

    Or one head below an expand.
    """
    if node.target is aten.expand.default and node.args[0].meta["val"].dim() == 4:
        before, after = node.args[0].meta["val"].shape, node.meta["val"].shape
        others = all(str(before[i]) == str(after[i]) for i in (0, 2, 3))
        return node.args[0] if before[1] == 1 and others else node
    if node.target is aten.repeat_interleave.self_int and node.args[2:3] == (1,):
        return node.args[0]
    merged = _below(node, aten.clone.default)
    if merged.target not in VIEWS:
        return node
    expanded = _below(merged.args[0], aten.clone.default)
    if expanded.target is not aten.expand.default:
        return node
    narrow = expanded.args[0]
    if narrow.target is not aten.unsqueeze.default or narrow.args[1] not in (2, -3):
        return node
    source = narrow.args[0]
    groups, shape = expanded.meta["val"].shape[2], source.meta["val"].shape
    whole = merged.meta["val"].shape
    plain = len(shape) == len(whole) == 4 and int(shape[1]) * int(groups) == int(whole[1])
    return source if plain and str(shape[2:]) == str(whole[2:]) else node


def _below(node: fx.Node, target: object) -> fx.Node:
    """The input of `node` if it calls `target`, else the node itself."""
    return node.args[0] if node.target is target else node
