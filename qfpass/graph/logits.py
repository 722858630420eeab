"""Logits read backwards: from a softmax down to the product of query and key, noting what lies between."""

import operator
from dataclasses import dataclass, field

import torch
from torch import fx

from ..errors import UnsupportedOpError
from ..upstream.operators import existing
from .dependence import SHAPE_ONLY, attribute
from .mask import BLOCKED_BELOW
from .products import RESHAPES, insert, keeps_last_two

aten = torch.ops.aten
CASTS = {aten.to.dtype, aten.contiguous.default, aten.clone.default, *existing("aten::_to_copy")}
PRODUCTS = {aten.matmul.default, aten.bmm.default, aten.baddbmm.default, aten.einsum.default}
_SCALES = {aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar}
_DIVISIONS = {aten.div.Tensor, aten.div.Scalar}
_CHOICES = {aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf}
_FILLS = {aten.masked_fill.Scalar, aten.masked_fill.Tensor}
_CLAMPS = {aten.max.other, aten.maximum.default, aten.clamp.default, aten.clamp_min.default}
_LARGEST = {aten.amax.default, aten.max.dim}


@dataclass
class Logits:
    """softcap(scale * factors * query @ key^T) + masks, and `sink` beside them as the last column.

    `text` has the nodes that depend on the tokens; what doesn't is a mask, or a factor that must be 1 for
    the keys seen.
    """

    module: fx.GraphModule
    site: str
    text: set[fx.Node]
    scale: float = 1.0
    softcap: float | None = None
    masks: list[fx.Node] = field(default_factory=list)
    factors: list[fx.Node] = field(default_factory=list)
    sink: fx.Node | None = None


def read_logits(logits: Logits, softmax: fx.Node) -> fx.Node | None:
    """Down from the softmax to the product; None where a linear layer makes the logits.

    Raises:
        UnsupportedOpError: an operation that isn't known there; names it.
    """
    reader = softmax
    node = softmax.args[0]
    while True:
        if node.target is aten.linear.default:
            return None
        _require_single_reader(logits, node, reader)
        if node.target in PRODUCTS:
            return node
        reader = node
        if node.target in CASTS or (node.target in RESHAPES and keeps_last_two(node)):
            node = node.args[0]
        elif node.target in _SCALES:
            node = _scaled(logits, node)
        elif node.target is aten.tanh.default:
            node = _capped(logits, node)
        elif node.target is aten.add.Tensor:
            node = _added(logits, node)
        elif node.target is aten.sub.Tensor:
            node = _less(logits, node)
        elif node.target in _CLAMPS:
            node = _clamped(logits, node)
        elif node.target is aten.cat.default:
            node = _beside_sink(logits, node)
        elif node.target in _CHOICES:
            node = _chosen(logits, node)
        elif node.target in _FILLS:
            node = _filled(logits, node)
        else:
            raise unknown(logits.site, node)


def _require_single_reader(logits: Logits, node: fx.Node, reader: fx.Node) -> None:
    for other in node.users:
        if other is not reader and other.target not in _LARGEST | SHAPE_ONLY:
            raise UnsupportedOpError(
                f"{logits.site}: its logits are read by {other.target} ({other.name}) too, which would need "
                "those of keys that are gone."
            )


def _scaled(logits: Logits, node: fx.Node) -> fx.Node:
    left, right = node.args[:2]
    divides = node.target in _DIVISIONS
    if (factor := _number(logits.module, right)) is not None:
        logits.scale *= 1 / factor if divides else factor
        return left
    if divides:
        raise unknown(logits.site, node)
    if (factor := _number(logits.module, left)) is not None:
        logits.scale *= factor
        return right
    if isinstance(left, fx.Node) and left not in logits.text:
        left, right = right, left
    if not isinstance(right, fx.Node) or right in logits.text:
        raise unknown(logits.site, node)
    logits.factors.append(right)
    return left


def _capped(logits: Logits, node: fx.Node) -> fx.Node:
    """cap * tanh(x / cap): what has been multiplied so far is the cap; x's own scale follows."""
    if logits.softcap is not None or logits.scale <= 0:
        raise unknown(logits.site, node)
    logits.softcap = logits.scale
    return node.args[0]


def _added(logits: Logits, node: fx.Node) -> fx.Node:
    left, right = node.args[:2]
    if right in logits.text and isinstance(left, fx.Node) and left not in logits.text:
        left, right = right, left
    if right in logits.text:
        raise UnsupportedOpError(
            f"{logits.site}: numbers that depend on the tokens are added to its logits ({node.name}), such "
            "as a second product or a bias that a query chooses; the pass keeps no more than keys and values."
        )
    if not isinstance(right, fx.Node) or node.kwargs.get("alpha", 1) != 1:
        raise unknown(logits.site, node)
    _note_mask(logits, node, right)
    return left


def _clamped(logits: Logits, node: fx.Node) -> fx.Node:
    """max(x, lowest), the lowest number of the dtype, which keeps -inf out and changes nothing else."""
    bounds = dict(zip(("min", "max"), node.args[1:], strict=False)) | dict(node.kwargs)
    least, lowest = _number(logits.module, bounds.get("min")), torch.finfo(node.meta["val"].dtype).min
    changes = least is None or least > lowest or bounds.get("max") is not None
    # What it leaves of a mask below it must hide a key even after the scaling above it.
    if changes or lowest * logits.scale > BLOCKED_BELOW:
        raise unknown(logits.site, node)
    return node.args[0]


def _less(logits: Logits, node: fx.Node) -> fx.Node:
    """x - max(x), which a softmax doesn't see, or x less a bias."""
    left, right = node.args[:2]
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node) or node.kwargs.get("alpha", 1) != 1:
        raise unknown(logits.site, node)
    largest = right.args[0] if right.target is operator.getitem else right
    if largest.target in _LARGEST and largest.args[0] is left:
        return left
    if right in logits.text:
        raise unknown(logits.site, node)
    _note_mask(logits, node, insert(node, aten.neg.default, right))
    return left


def _beside_sink(logits: Logits, node: fx.Node) -> fx.Node:
    """cat([logits, sink], -1), the sink one learned number a head: gpt-oss's attention sinks."""
    parts, dim = node.args[0], node.args[1] if len(node.args) > 1 else 0
    dims = node.meta["val"].dim()
    if len(parts) != 2 or dims < 4 or dim % dims != dims - 1:
        raise unknown(logits.site, node)
    if logits.sink is not None or logits.masks or logits.scale != 1:
        raise unknown(logits.site, node)
    product, learned = parts
    while learned.target in (aten.expand.default, *RESHAPES, *CASTS):
        learned = learned.args[0]
    heads = node.meta["val"].shape[1:-2].numel()
    if learned in logits.text or learned.meta["val"].shape.numel() != heads:
        raise unknown(logits.site, node)
    logits.sink = learned
    return product


def _chosen(logits: Logits, node: fx.Node) -> fx.Node:
    seen, kept, other = node.args
    if _blocks(logits.module, other):
        _note_mask(logits, node, seen)
        return kept
    if _blocks(logits.module, kept):
        _note_mask(logits, node, insert(node, aten.logical_not.default, seen))
        return other
    raise unknown(logits.site, node)


def _filled(logits: Logits, node: fx.Node) -> fx.Node:
    kept, hidden, number = node.args
    if not _blocks(logits.module, number):
        raise unknown(logits.site, node)
    _note_mask(logits, node, insert(node, aten.logical_not.default, hidden))
    return kept


def _note_mask(logits: Logits, node: fx.Node, mask: fx.Node) -> None:
    """A mask as it reaches the softmax, so times what the logits are multiplied by after it."""
    if logits.softcap is not None or logits.scale <= 0 or logits.factors:
        raise unknown(logits.site, node)
    if logits.scale != 1 and mask.meta["val"].dtype != torch.bool:
        mask = insert(node, aten.mul.Tensor, mask, logits.scale)
    logits.masks.append(mask)


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
    if argument.target in (aten.lift_fresh_copy.default, *CASTS):
        return _number(module, argument.args[0])
    held = attribute(module, argument) if argument.op == "get_attr" else None
    return float(held) if isinstance(held, torch.Tensor) and held.numel() == 1 else None


def unknown(site: str, node: fx.Node) -> UnsupportedOpError:
    return UnsupportedOpError(
        f"{site}: its attention is written out with {node.target} ({node.name}), which the pass doesn't "
        "understand there: only products over heads, scaling by a constant, a tanh soft cap, masks that are "
        "added or fill, a learned sink, casts."
    )
