"""Attention written out: a softmax over the last dimension between two matmuls.

softmax(query @ key^T, scaled, masked, cast) @ value. From the softmax the graph is read downwards through
a short list of operations to the product of query and key, and upwards to the product with the values.
"""

from dataclasses import dataclass, field

import torch
from torch import fx

from ..errors import UnsupportedOpError
from .calls import Call, site_name
from .mask import BLOCKED_BELOW, attribute

aten = torch.ops.aten
SOFTMAX = {"aten::softmax", "aten::_softmax"}
_CASTS = {aten.to.dtype, aten._to_copy.default, aten.contiguous.default, aten.clone.default}
_SCALES = {aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar}
_DIVISIONS = {aten.div.Tensor, aten.div.Scalar}
_CHOICES = {aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf}
_FILLS = {aten.masked_fill.Scalar, aten.masked_fill.Tensor}
_PRODUCTS = {aten.matmul.default, aten.bmm.default, aten.baddbmm.default, aten.einsum.default}


@dataclass
class _Logits:
    """What lies between the softmax and the product of query and key."""

    module: fx.GraphModule
    site: str
    text: set[fx.Node]
    scale: float = 1.0
    masks: list[fx.Node] = field(default_factory=list)


def read_softmax(module: fx.GraphModule, softmax: fx.Node, text: set[fx.Node]) -> Call | None:
    """The attention around `softmax`, or None if it is something else, such as a router.

    Args:
        text: the nodes that depend on the tokens; what doesn't is a mask.

    Raises:
        UnsupportedOpError: it is an attention, but of a form that isn't known; names the operation.
    """
    output = _product_with_values(softmax)
    if output is None:
        return None
    logits = _Logits(module, site_name(output), text)
    product = _follow(logits, softmax.args[0])
    if product is None or sum(n in text for n in product.all_input_nodes) < 2:
        return None
    _require_plain(logits, softmax, product, output)
    query, key, value = product.args[0], _transposed(product.args[1]), output.args[1]
    dtype = value.meta["val"].dtype
    query, key = _uncast(query, dtype), _uncast(key, dtype)
    if not query.meta["val"].dtype == key.meta["val"].dtype == dtype:
        raise UnsupportedOpError(f"{logits.site}: query, key and value have different dtypes.")
    return Call(output, query, key, value, logits.scale, masks=tuple(logits.masks))


def _product_with_values(softmax: fx.Node) -> fx.Node | None:
    """The product that the weights alone go into."""
    node = softmax
    while len(node.users) == 1:
        (user,) = node.users
        if user.target in _PRODUCTS:
            return user
        if user.target not in _CASTS:
            return None
        node = user
    return None


def _follow(logits: _Logits, node: fx.Node) -> fx.Node | None:
    """Down from the softmax to the product of query and key; None where a linear layer makes the logits."""
    while node.target not in _PRODUCTS:
        if node.target is aten.linear.default:
            return None
        if node.target in _CASTS:
            node = node.args[0]
        elif node.target in _SCALES:
            node = _scaled(logits, node)
        elif node.target is aten.add.Tensor:
            node = _added(logits, node)
        elif node.target in _CHOICES:
            node = _chosen(logits, node)
        elif node.target in _FILLS:
            node = _filled(logits, node)
        else:
            raise _unknown(logits, node)
    return node


def _scaled(logits: _Logits, node: fx.Node) -> fx.Node:
    left, right = node.args[:2]
    divides = node.target in _DIVISIONS
    if (factor := _number(logits.module, right)) is None:
        if divides or (factor := _number(logits.module, left)) is None:
            raise _unknown(logits, node)
        left = right
    logits.scale *= 1 / factor if divides else factor
    return left


def _added(logits: _Logits, node: fx.Node) -> fx.Node:
    left, right = node.args[:2]
    if right in logits.text and isinstance(left, fx.Node) and left not in logits.text:
        left, right = right, left
    if not isinstance(right, fx.Node) or right in logits.text or node.kwargs.get("alpha", 1) != 1:
        raise _unknown(logits, node)
    logits.masks.append(right)
    return left


def _chosen(logits: _Logits, node: fx.Node) -> fx.Node:
    seen, kept, other = node.args
    if _blocks(logits.module, other):
        logits.masks.append(seen)
        return kept
    if _blocks(logits.module, kept):
        logits.masks.append(_negated(seen))
        return other
    raise _unknown(logits, node)


def _filled(logits: _Logits, node: fx.Node) -> fx.Node:
    kept, hidden, number = node.args
    if not _blocks(logits.module, number):
        raise _unknown(logits, node)
    logits.masks.append(_negated(hidden))
    return kept


def _blocks(module: fx.GraphModule, argument: object) -> bool:
    number = _number(module, argument)
    return number is not None and number <= BLOCKED_BELOW


def _number(module: fx.GraphModule, argument: object) -> float | None:
    """The number that an argument is or holds as a constant."""
    if isinstance(argument, (int, float)):
        return float(argument)
    if not isinstance(argument, fx.Node):
        return None
    if argument.target in (aten.full.default, aten.scalar_tensor.default):
        value = argument.args[-1] if argument.meta["val"].numel() == 1 else None
        return float(value) if isinstance(value, (int, float)) else None
    if argument.target in (aten.lift_fresh_copy.default, *_CASTS):
        return _number(module, argument.args[0])
    held = attribute(module, argument) if argument.op == "get_attr" else None
    return float(held) if isinstance(held, torch.Tensor) and held.numel() == 1 else None


def _negated(mask: fx.Node) -> fx.Node:
    with mask.graph.inserting_after(mask):
        negated = mask.graph.call_function(aten.logical_not.default, (mask,))
    negated.meta["val"] = mask.meta["val"].logical_not()
    return negated


def _transposed(node: fx.Node) -> fx.Node:
    """Keys [B, H, S, D] from [B, H, D, S]: what was transposed, else a new node."""
    if node.target is aten.transpose.int and {d % 4 for d in node.args[1:]} == {2, 3}:
        return node.args[0]
    with node.graph.inserting_after(node):
        key = node.graph.call_function(aten.transpose.int, (node, 2, 3))
    key.meta = {**node.meta, "val": node.meta["val"].transpose(2, 3)}
    return key


def _uncast(node: fx.Node, dtype: torch.dtype) -> fx.Node:
    """What was cast to a wider dtype for the product alone: kernels add up in float32 anyway."""
    source = node.args[0] if node.target in _CASTS else None
    return source if source is not None and source.meta["val"].dtype == dtype else node


def _require_plain(logits: _Logits, softmax: fx.Node, product: fx.Node, output: fx.Node) -> None:
    for node in (product, output):
        if node.target is not aten.matmul.default or node.meta["val"].dim() != 4:
            raise _unknown(logits, node)
    if softmax.args[1] not in (-1, 3):
        raise UnsupportedOpError(
            f"{logits.site}: its softmax runs over dimension {softmax.args[1]}, not keys."
        )
    if output.args[1] in (softmax, *softmax.users) or not isinstance(output.args[1], fx.Node):
        raise _unknown(logits, output)


def _unknown(logits: _Logits, node: fx.Node) -> UnsupportedOpError:
    return UnsupportedOpError(
        f"{logits.site}: its attention is written out with {node.target} ({node.name}), which the pass "
        "doesn't understand there: only matmul, scaling by a constant, masks that are added or fill, casts."
    )
