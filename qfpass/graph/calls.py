"""Attention operators as they are called in a graph, whatever the operator, in one form."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from ..errors import UnsupportedOpError
from ..upstream.operators import argument_names, name_of


@dataclass(frozen=True)
class Call:
    """One attention's output, operands and form.

    `node` gives the output, the first of a tuple if `heads_last`; `masks` are nodes, each of which must
    let a key be seen, or adds a bias; `factors` multiply the logits before those, and must be 1 for keys
    seen; `scale` None is the operator's own; `softcap` caps logits by tanh; `sink` holds one more logit a
    query head, whose value is nothing; `slopes` holds flash_attn's ALiBi slopes, one a query head.
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


def operator_name(node: fx.Node) -> str:
    """Without its overload; "" of what is no operator."""
    return name_of(node.target).partition(".")[0]


def _read_sdpa(node: fx.Node) -> Call:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    mask = given.get("attn_mask")
    return Call(
        node,
        given["query"],
        given["key"],
        given["value"],
        given.get("scale"),
        causal=bool(given.get("is_causal", False)),
        masks=() if mask is None else (mask,),
        dropout=float(given.get("dropout_p", 0.0)),
    )


def _read_flash_attn(node: fx.Node) -> Call:
    """flash_attn's forward operator; its window_size_left counts the keys before the query's own."""
    given = dict(zip(argument_names(node.target), node.args, strict=False)) | dict(node.kwargs)
    if any(user.args[1] != 0 and user.users for user in node.users):
        raise UnsupportedOpError(
            f"{site_name(node)}: flash_attn's log-sum-exps are read too, which would need the "
            "keys that are gone."
        )
    left = given.get("window_size_left", -1)
    causal = bool(given.get("causal", False)) or given.get("window_size_right", -1) == 0
    return Call(
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


OPERATORS: dict[str, Callable[[fx.Node], Call]] = {
    "aten::scaled_dot_product_attention": _read_sdpa,
    "flash_attn::_flash_attn_forward": _read_flash_attn,
}


def site_name(node: fx.Node) -> str:
    """The module path that the attention was called from, else the node's own name."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    if not paths:
        return node.name
    path = paths[-1].replace("L['self'].", "").removeprefix("model.")
    return path or node.name
