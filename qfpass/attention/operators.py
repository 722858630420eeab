"""Read the calls of attention operators (SDPA, flash_attn) into one form, `AttentionCall`."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from ..errors import UnsupportedOpError
from ..graph.nodes import args_of, site_name
from ..upstream.operators import argument_names


@dataclass(frozen=True)
class AttentionCall:
    """One attention as the graph spells it: its output, its operands and the terms of its logits.

    Attributes:
        node: the output; the first element of its tuple if `heads_last`.
        query, key, value: [B, H, S, D], or [B, S, H, D] if `heads_last`.
        scale: what multiplies query @ key^T; None for the operator's default.
        softcap: c in c * tanh(logits / c).
        sink: a learned sink: one more logit per query head, which has no value.
        causal: whether the operator itself hides later keys.
        window: tokens that a query sees, its own included, by the operator's own arguments.
        masks: nodes; a key is seen if all of them show it. They may add a bias.
        factors: nodes that multiply the logits before the masks; they must be 1 for keys that are seen.
        slopes: flash_attn's ALiBi slopes, one per query head.
        dropout: the probability.
    """

    node: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    scale: float | None
    softcap: float | None = None
    sink: fx.Node | None = None
    causal: bool = False
    window: int | None = None
    masks: tuple[fx.Node, ...] = ()
    factors: tuple[fx.Node, ...] = ()
    slopes: fx.Node | None = None
    dropout: float = 0.0
    heads_last: bool = False


def _read_sdpa(node: fx.Node) -> AttentionCall:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = dict(zip(names, args_of(node), strict=False)) | dict(node.kwargs)
    mask = given.get("attn_mask")
    return AttentionCall(
        node,
        given["query"],
        given["key"],
        given["value"],
        given.get("scale"),
        causal=bool(given.get("is_causal", False)),
        masks=() if mask is None else (mask,),
        dropout=float(given.get("dropout_p", 0.0)),
    )


def _read_flash_attn(node: fx.Node) -> AttentionCall:
    """A call of flash_attn's forward operator, whose window_size_left leaves out the query's own key."""
    given = dict(zip(argument_names(node.target), args_of(node), strict=False)) | dict(node.kwargs)
    if any(args_of(user)[1] != 0 and user.users for user in node.users):
        raise UnsupportedOpError(
            f"{site_name(node)}: the model also reads flash_attn's log-sum-exps, which would need the "
            "evicted keys."
        )
    left = given.get("window_size_left", -1)
    causal = bool(given.get("causal", False)) or given.get("window_size_right", -1) == 0
    return AttentionCall(
        node,
        given["q"],
        given["k"],
        given["v"],
        given.get("softmax_scale"),
        softcap=given.get("softcap") or None,
        causal=causal,
        window=None if left is None or left < 0 else left + 1,
        slopes=given.get("alibi_slopes"),
        dropout=float(given.get("dropout_p", 0.0)),
        heads_last=True,
    )


OPERATORS: dict[str, Callable[[fx.Node], AttentionCall]] = {
    "aten::scaled_dot_product_attention": _read_sdpa,
    "flash_attn::_flash_attn_forward": _read_flash_attn,
}
