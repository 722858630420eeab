"""Read the logits of a softmax backwards to the product of query and key, noting the terms between."""

import operator
from dataclasses import dataclass, field

import torch
from torch import fx

from ..errors import UnsupportedOpError
from ..graph.dependence import SHAPE_ONLY
from ..graph.nodes import args_of, attribute, insert
from ..graph.patterns import CASTS, PRODUCTS, RESHAPES, keeps_last_two
from .mask import HIDDEN_BELOW

aten = torch.ops.aten
_SCALES = {aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor, aten.div.Scalar}
_DIVISIONS = {aten.div.Tensor, aten.div.Scalar}
_CHOICES = {aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf}
_FILLS = {aten.masked_fill.Scalar, aten.masked_fill.Tensor}
_CLAMPS = {aten.max.other, aten.maximum.default, aten.clamp.default, aten.clamp_min.default}
_LARGEST = {aten.amax.default, aten.max.dim}


@dataclass
class LogitTerms:
    """The terms of logits: softcap(scale * factors * query @ key^T) + masks, and `sink` as one more column.

    Attributes:
        module: the module whose graph holds the nodes.
        site: the attention's name, for messages.
        text: the nodes that depend on the tokens.
        masks: nodes that don't, added to the logits, or True where a key is seen.
        factors: nodes that don't, by which the logits are multiplied; they must be 1 for keys that are seen.
        sink: the node that holds a learned sink, one number per head.
    """

    module: fx.GraphModule
    site: str
    text: set[fx.Node]
    scale: float = 1.0
    softcap: float | None = None
    masks: list[fx.Node] = field(default_factory=list)
    factors: list[fx.Node] = field(default_factory=list)
    sink: fx.Node | None = None


def read_logits(logits: LogitTerms, softmax: fx.Node) -> fx.Node | None:
    """The product of query and key that a softmax reads, or None if a linear layer makes what it reads.

    What lies between the two is noted in `logits`.

    Raises:
        UnsupportedOpError: an operator between them isn't understood; the message names it.
    """
    reader = softmax
    node = args_of(softmax)[0]
    while True:
        if node.target is aten.linear.default:
            return None
        _require_single_reader(logits, node, reader)
        if node.target in PRODUCTS:
            return node
        reader = node
        if node.target in CASTS or (node.target in RESHAPES and keeps_last_two(node)):
            node = args_of(node)[0]
        elif node.target in _SCALES:
            node = _below_scale(logits, node)
        elif node.target is aten.tanh.default:
            node = _below_softcap(logits, node)
        elif node.target is aten.add.Tensor:
            node = _below_sum(logits, node)
        elif node.target is aten.sub.Tensor:
            node = _below_difference(logits, node)
        elif node.target in _CLAMPS:
            node = _below_clamp(logits, node)
        elif node.target is aten.cat.default:
            node = _below_cat(logits, node)
        elif node.target in _CHOICES:
            node = _below_where(logits, node)
        elif node.target in _FILLS:
            node = _below_fill(logits, node)
        else:
            raise unknown_operator_error(logits.site, node)


def _require_single_reader(logits: LogitTerms, node: fx.Node, reader: fx.Node) -> None:
    """Raise UnsupportedOpError if any node but `reader` reads more of `node` than its maximum or shape."""
    for other in node.users:
        if other is not reader and other.target not in _LARGEST | SHAPE_ONLY:
            raise UnsupportedOpError(
                f"{logits.site}: its logits are read by {other.target} ({other.name}) too, which would need "
                "those of keys that are gone."
            )


def _below_scale(logits: LogitTerms, node: fx.Node) -> fx.Node:
    """The logits in a product or quotient; the other operand is noted as scale (constant) or factor."""
    left, right = args_of(node)[:2]
    divides = node.target in _DIVISIONS
    if (factor := _number(logits.module, right)) is not None:
        logits.scale *= 1 / factor if divides else factor
        return left
    if divides:
        raise unknown_operator_error(logits.site, node)
    if (factor := _number(logits.module, left)) is not None:
        logits.scale *= factor
        return right
    if isinstance(left, fx.Node) and left not in logits.text:
        left, right = right, left
    if not isinstance(right, fx.Node) or right in logits.text:
        raise unknown_operator_error(logits.site, node)
    logits.factors.append(right)
    return left


def _below_softcap(logits: LogitTerms, node: fx.Node) -> fx.Node:
    """The x / cap in cap * tanh(x / cap): the scale noted so far is the cap, which the quotient cancels."""
    if logits.softcap is not None or logits.scale <= 0:
        raise unknown_operator_error(logits.site, node)
    logits.softcap = logits.scale
    return args_of(node)[0]


def _below_sum(logits: LogitTerms, node: fx.Node) -> fx.Node:
    """The logits in a sum; the other summand is noted as mask."""
    left, right = args_of(node)[:2]
    if right in logits.text and isinstance(left, fx.Node) and left not in logits.text:
        left, right = right, left
    if right in logits.text:
        raise UnsupportedOpError(
            f"{logits.site}: numbers that depend on the tokens are added to its logits ({node.name}), "
            "for example a second product or a bias that depends on the query. A store holds keys and values "
            "only."
        )
    if not isinstance(right, fx.Node) or node.kwargs.get("alpha", 1) != 1:
        raise unknown_operator_error(logits.site, node)
    _note_mask(logits, node, right)
    return left


def _below_clamp(logits: LogitTerms, node: fx.Node) -> fx.Node:
    """The x of max(x, dtype's lowest number), which replaces -inf and changes nothing else."""
    bounds = dict(zip(("min", "max"), args_of(node)[1:], strict=False)) | dict(node.kwargs)
    least, lowest = _number(logits.module, bounds.get("min")), torch.finfo(node.meta["val"].dtype).min
    changes = least is None or least > lowest or bounds.get("max") is not None
    # Where a mask was -inf there now is `lowest`, which must still hide a key after later scaling.
    if changes or lowest * logits.scale > HIDDEN_BELOW:
        raise unknown_operator_error(logits.site, node)
    return args_of(node)[0]


def _below_difference(logits: LogitTerms, node: fx.Node) -> fx.Node:
    """The x of x - max(x), which leaves a softmax unchanged, or of x - bias; -bias is noted as mask."""
    left, right = args_of(node)[:2]
    if not isinstance(left, fx.Node) or not isinstance(right, fx.Node) or node.kwargs.get("alpha", 1) != 1:
        raise unknown_operator_error(logits.site, node)
    largest = args_of(right)[0] if right.target is operator.getitem else right
    if largest.target in _LARGEST and args_of(largest)[0] is left:
        return left
    if right in logits.text:
        raise unknown_operator_error(logits.site, node)
    _note_mask(logits, node, insert(node, aten.neg.default, right))
    return left


def _below_cat(logits: LogitTerms, node: fx.Node) -> fx.Node:
    """The logits in cat([logits, sink], -1); the sink, one learned number per head (gpt-oss), is noted."""
    parts, dim = args_of(node)[0], args_of(node)[1] if len(args_of(node)) > 1 else 0
    dims = node.meta["val"].dim()
    if len(parts) != 2 or dims < 4 or dim % dims != dims - 1:
        raise unknown_operator_error(logits.site, node)
    if logits.sink is not None or logits.masks or logits.scale != 1:
        raise unknown_operator_error(logits.site, node)
    product, learned = parts
    while learned.target in (aten.expand.default, *RESHAPES, *CASTS):
        learned = args_of(learned)[0]
    heads = node.meta["val"].shape[1:-2].numel()
    if learned in logits.text or learned.meta["val"].shape.numel() != heads:
        raise unknown_operator_error(logits.site, node)
    logits.sink = learned
    return product


def _below_where(logits: LogitTerms, node: fx.Node) -> fx.Node:
    """The logits in a where() that puts a blocking number elsewhere; its condition is noted as mask."""
    seen, kept, other = args_of(node)
    if _blocks(logits.module, other):
        _note_mask(logits, node, seen)
        return kept
    if _blocks(logits.module, kept):
        _note_mask(logits, node, insert(node, aten.logical_not.default, seen))
        return other
    raise unknown_operator_error(logits.site, node)


def _below_fill(logits: LogitTerms, node: fx.Node) -> fx.Node:
    """The logits in a masked_fill with a blocking number; its negated condition is noted as mask."""
    kept, hidden, number = args_of(node)
    if not _blocks(logits.module, number):
        raise unknown_operator_error(logits.site, node)
    _note_mask(logits, node, insert(node, aten.logical_not.default, hidden))
    return kept


def _note_mask(logits: LogitTerms, node: fx.Node, mask: fx.Node) -> None:
    """Add a mask to `logits.masks`, inserted before `node`, multiplied by what scales the logits after it."""
    if logits.softcap is not None or logits.scale <= 0 or logits.factors:
        raise unknown_operator_error(logits.site, node)
    if logits.scale != 1 and mask.meta["val"].dtype != torch.bool:
        mask = insert(node, aten.mul.Tensor, mask, logits.scale)
    logits.masks.append(mask)


def _blocks(module: fx.GraphModule, argument: object) -> bool:
    """Whether an argument is a constant so low that a key with such a logit isn't seen."""
    number = _number(module, argument)
    return number is not None and number <= HIDDEN_BELOW


def _number(module: fx.GraphModule, argument: object) -> float | None:
    """The number that an argument is, or holds as a constant of one element; else None."""
    if isinstance(argument, (int, float)):
        return float(argument)
    if not isinstance(argument, fx.Node):
        return None
    if argument.target in (aten.full.default, aten.scalar_tensor.default):
        value = args_of(argument)[-1] if argument.meta["val"].numel() == 1 else None
        return float(value) if isinstance(value, (int, float)) else None
    if argument.target in (aten.lift_fresh_copy.default, *CASTS):
        return _number(module, args_of(argument)[0])
    held = attribute(module, argument) if argument.op == "get_attr" else None
    return float(held) if isinstance(held, torch.Tensor) and held.numel() == 1 else None


def unknown_operator_error(site: str, node: fx.Node) -> UnsupportedOpError:
    """The error for an operator, `node`'s, that isn't understood in the attention named `site`."""
    return UnsupportedOpError(
        f"{site}: its attention uses {node.target} ({node.name}), which the pass doesn't understand there. "
        "It understands products over heads, scaling by a constant, a tanh soft cap, masks that are added "
        "or filled in, a learned sink, and casts."
    )
