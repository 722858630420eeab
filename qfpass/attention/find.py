"""Find every attention in a captured graph by data flow, with all that the rewrite needs to know of it."""

from dataclasses import dataclass

import torch
from torch import fx

from ..errors import NoAttentionError, UnsupportedOpError
from ..graph.captured import Captured
from ..graph.dependence import SHAPE_ONLY, text_dependent
from ..graph.devices import device_of
from ..graph.nodes import args_of, operator_name, site_name
from ..graph.patterns import SOFTMAX, VIEWS
from ..kernels.distance_bias import DistanceBias
from ..kernels.form import AttentionForm
from .mask import constant_value
from .operators import OPERATORS, AttentionCall
from .softmax import read_softmax
from .span import MaskMeaning, Span, learn_mask_meaning
from .token_mixing import mixing_reason

aten = torch.ops.aten
# Meanings by (masks, factors, whether there is a sink), since most layers share their masks.
Known = dict[tuple[tuple[fx.Node, ...], tuple[fx.Node, ...], bool], MaskMeaning]


@dataclass(frozen=True)
class Attention:
    """One attention of a graph: its output, its operands, their sizes and what its logits are.

    `query` [B, Hq, S, D], `key` [B, Hkv, S, D] and `value` [B, Hkv, S, Dv] are the nodes of the final tensors
    (rotated, key and value heads not repeated); their layout is [B, S, H, D] if `heads_last`.

    Attributes:
        index: its place among the graph's attentions.
        name: the path of its module.
        node: its output, the first of a tuple if `heads_last`.
        span: the keys that a query sees.
        sink: the node that holds a learned sink, one more logit per query head, if the form has one.
        device: where it is computed, if that isn't where the token ids lie.
    """

    index: int
    name: str
    node: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    form: AttentionForm
    query_heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    span: Span
    sink: fx.Node | None = None
    heads_last: bool = False
    device: torch.device | None = None


def find_attentions(
    captured: Captured, context_length: int | None, refused: dict[str, str] | None = None
) -> list[Attention]:
    """All attentions of a captured graph, in graph order.

    Args:
        context_length: tokens of the longest text, at which masks are evaluated; None if unknown.
        refused: if given, an attention that isn't supported is noted here, by name, with the reason, and left
            out of what is returned.

    Raises:
        NoAttentionError: there is none.
        UnsupportedOpError: an attention has a form that isn't supported; the message names the attention.
    """
    known: Known = {}
    found: list[Attention] = []
    text = text_dependent(captured.module.graph, SHAPE_ONLY)
    for node in list(captured.module.graph.nodes):
        try:
            call = _call_at(captured.module, node, text)
            if call is not None:
                site = site_name(call.node)
                meaning = _meaning(captured, call, site, context_length, known)
                found.append(_describe(len(found), site, call, meaning, captured.device))
        except UnsupportedOpError as error:
            if refused is None:
                raise
            refused[site_name(node)] = str(error)
    if not found and not refused:
        if reason := mixing_reason(captured.module):
            raise NoAttentionError(f"no attention was found in the captured graph: {reason}.")
        raise NoAttentionError(
            "no attention was found in the captured graph: no scaled_dot_product_attention, no flash_attn, "
            "and no softmax between two matmuls."
        )
    return found


def _call_at(module: fx.GraphModule, node: fx.Node, text: set[fx.Node]) -> AttentionCall | None:
    """The attention that `node` is the operator or the softmax of; None if it is something else."""
    name = operator_name(node)
    if name in OPERATORS:
        return OPERATORS[name](node)
    return read_softmax(module, node, text) if name in SOFTMAX else None


def _meaning(
    captured: Captured,
    call: AttentionCall,
    site: str,
    context_length: int | None,
    known: Known,
) -> MaskMeaning:
    """The span and the bias of a call; what its masks mean is looked up in `known`, or learned and added."""
    if call.dropout:
        raise UnsupportedOpError(f"{site}: attention dropout ({call.dropout}) is on: call model.eval().")
    if not call.masks:
        if not call.causal:
            raise UnsupportedOpError(
                f"{site}: bidirectional attention (no mask, not causal); qfpass compiles causal decoders."
            )
        bias = None if call.slopes is None else _constant_slopes(captured.module, call.slopes, site)
        return MaskMeaning(Span(call.window), bias)
    if call.causal:
        raise UnsupportedOpError(f"{site}: both a mask and is_causal, which contradict each other.")
    masking = call.masks, call.factors, call.sink is not None
    if masking not in known:
        known[masking] = learn_mask_meaning(captured.module, *masking, site, context_length)
    return known[masking]


def _describe(
    index: int, site: str, call: AttentionCall, meaning: MaskMeaning, ids_device: torch.device
) -> Attention:
    """The `Attention` of a call, in a decoder whose token ids lie on `ids_device`.

    Raises:
        UnsupportedOpError: its heads don't form groups, its queries and keys differ in length, or its bias
            isn't supported.
    """
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
    if meaning.bias is not None and meaning.span.reach is not None:
        raise UnsupportedOpError(f"{site}: a bias by distance within a window or chunk isn't supported.")
    form = AttentionForm(
        scale=float(call.scale) if call.scale is not None else head_dim**-0.5,
        softcap=call.softcap,
        bias=_for_each_head(meaning.bias, query_heads, site),
        has_sink=call.sink is not None,
    )
    value_dim, device = int(value.meta["val"].shape[3]), device_of(call.query.meta["val"])
    return Attention(
        index, site, call.node, call.query, key, value, form,
        query_heads, kv_heads, head_dim, value_dim, meaning.span, call.sink, call.heads_last,
        None if device == ids_device else device,
    )  # fmt: skip


def _constant_slopes(module: fx.GraphModule, node: fx.Node, site: str) -> DistanceBias:
    """The bias of the ALiBi slopes that a node holds, one per query head, whatever the inputs are."""
    slopes = constant_value(module, node)
    if slopes is None or slopes.dim() != 1:
        raise UnsupportedOpError(
            f"{site}: flash_attn's alibi_slopes must be constants, one a head; here they are "
            "computed from the call's inputs or differ by row."
        )
    return DistanceBias(tuple(slopes.tolist()))


def _for_each_head(bias: DistanceBias | None, query_heads: int, site: str) -> DistanceBias | None:
    """The bias with numbers for each query head, from as many or from one for all."""
    if bias is not None and bias.heads not in (1, query_heads):
        raise UnsupportedOpError(f"{site}: a bias for {bias.heads} heads, but {query_heads} query heads.")
    return None if bias is None else bias.for_heads(query_heads)


def _heads(node: fx.Node, dim: int) -> int:
    return int(node.meta["val"].shape[dim])


def _strip_repeat(node: fx.Node) -> fx.Node:
    """The keys or values before their heads were repeated for the query heads; `node` itself if they weren't.

    Recognised are unsqueeze, expand and reshape (transformers' repeat_kv), repeat_interleave along heads, and
    the expand of a single head.
    """
    if node.target is aten.expand.default and args_of(node)[0].meta["val"].dim() == 4:
        before, after = args_of(node)[0].meta["val"].shape, node.meta["val"].shape
        others = all(str(before[i]) == str(after[i]) for i in (0, 2, 3))
        return args_of(node)[0] if before[1] == 1 and others else node
    if node.target is aten.repeat_interleave.self_int and args_of(node)[2:3] == (1,):
        return args_of(node)[0]
    merged = _below(node, aten.clone.default)
    if merged.target not in VIEWS:
        return node
    expanded = _below(args_of(merged)[0], aten.clone.default)
    if expanded.target is not aten.expand.default:
        return node
    narrow = args_of(expanded)[0]
    if narrow.target is not aten.unsqueeze.default or args_of(narrow)[1] not in (2, -3):
        return node
    source = args_of(narrow)[0]
    groups, shape = expanded.meta["val"].shape[2], source.meta["val"].shape
    whole = merged.meta["val"].shape
    plain = len(shape) == len(whole) == 4 and int(shape[1]) * int(groups) == int(whole[1])
    return source if plain and str(shape[2:]) == str(whole[2:]) else node


def _below(node: fx.Node, target: object) -> fx.Node:
    """The input of `node` if it calls `target`, else the node itself."""
    return args_of(node)[0] if node.target is target else node
