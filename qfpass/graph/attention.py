"""Find: every attention in a captured graph, read by data flow, with what rewriting needs to know."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from ..errors import NoAttentionError, UnsupportedOpError
from .capture import Captured
from .span import Span, learn_span

aten = torch.ops.aten


@dataclass(frozen=True)
class Attention:
    """One attention: where it is, what it reads and how it is shaped.

    `query` [B, Hq, S, D], `key` [B, Hkv, S, D] and `value` [B, Hkv, S, Dv] are the nodes that hold the
    final tensors (positions applied, heads not repeated), or [B, S, H, D] if `heads_last`.
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
    heads_last: bool = False


@dataclass(frozen=True)
class _Call:
    """An attention operator's arguments in one form, whatever the operator."""

    query: fx.Node
    key: fx.Node
    value: fx.Node
    scale: float | None
    causal: bool
    window: int | None
    mask: fx.Node | None
    dropout: float
    heads_last: bool


def find_attentions(captured: Captured, context_length: int | None) -> list[Attention]:
    """All attentions in graph order.

    Raises:
        NoAttentionError: there is none.
        UnsupportedOpError: one can't be understood; names it.
    """
    spans: dict[fx.Node, Span] = {}
    found: list[Attention] = []
    for node in captured.module.graph.nodes:
        reader = _READERS.get(_operator_name(node))
        if reader is not None:
            site = _site_name(node)
            call = reader(node)
            span = _span(captured, call, site, context_length, spans)
            found.append(_record(len(found), site, node, call, span))
    if not found:
        raise NoAttentionError(
            "no attention was found in the captured graph: the model must call "
            "scaled_dot_product_attention or flash_attn (attention written as softmax between two "
            "matmuls is not recognised)."
        )
    return found


def _operator_name(node: fx.Node) -> str:
    target = node.target
    return target._schema.name if isinstance(target, torch._ops.OpOverload) else ""


def _read_sdpa(node: fx.Node) -> _Call:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return _Call(
        given["query"],
        given["key"],
        given["value"],
        given.get("scale"),
        bool(given.get("is_causal", False)),
        None,
        given.get("attn_mask"),
        float(given.get("dropout_p", 0.0)),
        heads_last=False,
    )


def _read_flash_attn(node: fx.Node) -> _Call:
    """flash_attn's forward operator; its window_size_left counts the keys before the query's own."""
    names = [argument.name for argument in node.target._schema.arguments]
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    site = _site_name(node)
    if given.get("alibi_slopes") is not None or given.get("softcap", 0.0):
        raise UnsupportedOpError(f"{site}: flash_attn with alibi_slopes or softcap isn't supported.")
    left = given.get("window_size_left", -1)
    causal = bool(given.get("causal", False)) or given.get("window_size_right", -1) == 0
    return _Call(
        given["q"],
        given["k"],
        given["v"],
        given.get("softmax_scale"),
        causal,
        None if left is None or left < 0 else left + 1,
        None,
        float(given.get("dropout_p", 0.0)),
        heads_last=True,
    )


_READERS: dict[str, Callable[[fx.Node], _Call]] = {
    "aten::scaled_dot_product_attention": _read_sdpa,
    "flash_attn::_flash_attn_forward": _read_flash_attn,
}


def _span(
    captured: Captured,
    call: _Call,
    site: str,
    context_length: int | None,
    known: dict[fx.Node, Span],
) -> Span:
    if call.dropout:
        raise UnsupportedOpError(f"{site}: attention dropout ({call.dropout}) is on: call model.eval().")
    if call.mask is None:
        if not call.causal:
            raise UnsupportedOpError(
                f"{site}: bidirectional attention (no mask, not causal); qfpass compiles causal decoders."
            )
        return Span(call.window)
    if call.causal:
        raise UnsupportedOpError(f"{site}: both a mask and is_causal, which contradict each other.")
    if call.mask not in known:
        known[call.mask] = learn_span(captured.module, call.mask, site, context_length)
    return known[call.mask]


def _record(index: int, site: str, node: fx.Node, call: _Call, span: Span) -> Attention:
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
    scale = float(call.scale) if call.scale is not None else head_dim**-0.5
    value_dim = int(value.meta["val"].shape[3])
    return Attention(
        index, site, node, call.query, key, value, scale,
        query_heads, kv_heads, head_dim, value_dim, span, call.heads_last,
    )  # fmt: skip


def _heads(node: fx.Node, dim: int) -> int:
    return int(node.meta["val"].shape[dim])


def _strip_repeat(node: fx.Node) -> fx.Node:
    """The kv heads below a repeat_kv: unsqueeze, expand, reshape, or repeat_interleave, along heads."""
    if node.target is aten.repeat_interleave.self_int and node.args[2:3] == (1,):
        return node.args[0]
    merged = _below(node, aten.clone.default)
    if merged.target not in (aten.reshape.default, aten.view.default, aten._unsafe_view.default):
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


def _site_name(node: fx.Node) -> str:
    """The module path that the attention was called from, else the node's own name."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    if not paths:
        return node.name
    path = paths[-1].replace("L['self'].", "").removeprefix("model.")
    return path or node.name
