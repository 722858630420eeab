"""Linears that, for one token of each row, run in loops which read each weight once.

On a processor, a decode step spends nearly all its time on reading weights. The loops
(`kernels/cpu/step_linear`) take each layer's weights as operands, so layers of one kind share their code.
Linears that read the same input become one call. Weights of eight bits, cast only to be multiplied, are read
as they lie; `packed_weights` does so for those that are dequantised by groups.
"""

import copy
import math
import operator
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import fx

from ..graph.nodes import args_of
from ..kernels.cpu.grouped_linear.op import grouped_linears
from ..kernels.cpu.step_linear.op import few_token_linears, fits
from ..kernels.cpu.tokens import MOST
from ..upstream.modules import parts_of
from ..upstream.operators import written_arguments
from .group_codes import group_codes, is_held
from .outline import Outlined

aten = torch.ops.aten


class Linear(NamedTuple):
    """The operands of a linear: input, weight [N, K] and bias.

    `weight` is the weight as it is held or dequantised where the linear reads a cast of it.
    """

    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None

    @property
    def kind(self) -> str | None:
        """Linears of one input and one kind are read together; None for one whose weight is computed."""
        if self.bias is not None and not is_held(self.bias):
            return None
        return "held" if is_held(self.weight) else "dequantised" if group_codes(self.weight) else None


def stream_weights(outlined: Outlined) -> None:
    """Replace the linears of body and head by calls of `linears`, in place.

    A part that has weights which are tensor subclasses is left as it is, since these have products of their
    own.
    """
    for part in (outlined.body, outlined.head):
        if part is None or any(parts_of(p) for p in part.parameters()):
            continue
        for graph_module in part.modules():
            if isinstance(graph_module, fx.GraphModule):
                for together in _groups_by_input(graph_module.graph):
                    _replace(graph_module.graph, together)
                graph_module.graph.eliminate_dead_code()
                graph_module.recompile()


def _groups_by_input(graph: fx.Graph) -> list[list[fx.Node]]:
    """Groups of linears that read the same input; a linear whose weight is computed is a group alone."""
    groups: dict[object, list[fx.Node]] = defaultdict(list)
    changes = 0  # writes in place so far: the same node may hold other numbers after one
    for node in graph.nodes:
        if written_arguments(node.target):
            changes += 1
        if linear := _linear(node):
            groups[(linear.x, changes, linear.kind) if linear.kind else node].append(node)
    return list(groups.values())


def _linear(node: fx.Node) -> Linear | None:
    """A node's operands if it is a product with a weight; None for any other node."""
    if node.target is aten.linear.default:
        x, weight, *bias = args_of(node)
        return Linear(x, _before_cast(weight), bias[0] if bias else None)
    if node.target is aten.mm.default:
        x, transposed = args_of(node)
        held = _before_cast(transposed, through=aten.t.default)
        return None if held is transposed else Linear(x, held, None)
    return None


def _before_cast(node: fx.Node, through: object = None) -> fx.Node:
    """The weight of which `node` is a cast, transposed as well if `through` is an operator that does so.

    It is held or dequantised by groups; `node` itself if it is computed in another way.
    """
    wanted = {through} if through else set()
    source = node
    while source.target is aten.to.dtype or source.target in wanted:
        wanted.discard(source.target)
        source = args_of(source)[0]
    return source if not wanted and (is_held(source) or group_codes(source)) else node


def _replace(graph: fx.Graph, together: Sequence[fx.Node]) -> None:
    read = [linear for node in together if (linear := _linear(node))]
    for operand in (operand for linear in read for operand in linear[1:] if operand is not None):
        _move_before(together[0], operand)
    weights, biases = [linear.weight for linear in read], [linear.bias for linear in read]
    with graph.inserting_before(together[0]):
        outs = graph.call_function(linears, (read[0].x, weights, biases))
        for i, node in enumerate(together):
            out = graph.call_function(operator.getitem, (outs, i))
            out.meta = dict(node.meta)
            node.replace_all_uses_with(out)
    for node in together:
        graph.erase_node(node)


def _move_before(first: fx.Node, operand: fx.Node) -> None:
    """Move a weight that is held, or made of what is, to before the node `first`, where it isn't yet."""
    codes = group_codes(operand)
    for held in codes.nodes if codes else [operand]:
        if held.op == "get_attr":  # it has no inputs, so it can move to the front
            next(iter(first.graph.nodes)).prepend(held)
    if codes and first < operand:
        first.prepend(operand)


def for_few_tokens(module: fx.GraphModule) -> fx.GraphModule:
    """A copy for calls of up to `MOST` tokens, whose linears run in this package's loops."""
    copied = fx.GraphModule(module, copy.deepcopy(module.graph))
    for node in copied.graph.nodes:
        if node.target is linears:
            node.kwargs = {**node.kwargs, "few": True}
    copied.recompile()
    return copied


def linears(
    x: torch.Tensor,
    weights: Sequence[torch.Tensor],
    biases: Sequence[torch.Tensor | None],
    packed: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = (),
    few: bool = False,
) -> list[torch.Tensor]:
    """The products [..., N] of x [..., K] with each weight [N, K], cast to x's dtype, plus its bias.

    If x has one token of each of up to `MOST` rows (S = 1), or `few` says that it never has more tokens than
    that, this package's loops compute them, provided that they take the weights. Instead of these they read
    the operands that `pack_weights` gave, `packed`.
    """
    is_narrow = x.dtype.itemsize <= torch.float32.itemsize  # sums are in float32
    if not ((few or _is_step(x)) and is_narrow and (packed or _are_streamed(x.dtype, weights))):
        return [
            aten.linear.default(x, weight.to(x.dtype), bias)
            for weight, bias in zip(weights, biases, strict=True)
        ]
    rows = [weight.shape[0] for weight in weights]
    read = x.reshape(-1, x.shape[-1])
    if packed:
        codes, scales, zeros = map(list, zip(*packed, strict=True))
        together = grouped_linears(read.float(), codes, scales, zeros)
    else:
        is_bfloat16 = all(weight.dtype == x.dtype == torch.bfloat16 for weight in weights)
        together = few_token_linears(read if is_bfloat16 else read.float(), list(weights))
    return [
        (out if bias is None else out + bias).to(x.dtype).reshape(*x.shape[:-1], -1).contiguous()
        for out, bias in zip(together.split(rows, -1), biases, strict=True)
    ]


def _is_step(x: torch.Tensor) -> bool:
    """Whether x [..., K] has one token of each of a few rows.

    The numbers of tokens that an export leaves open stay open: they are known not to be 1.
    """
    if x.dim() == 3 and x.shape[1] == 1:
        return x.shape[0] <= MOST
    return math.prod(x.shape[:-1]) == 1


def _are_streamed(dtype: torch.dtype, weights: Sequence[torch.Tensor]) -> bool:
    """Whether the loops take weights that are cast to `dtype`: no cast may round."""
    return fits(weights) and all(weight.dtype in (dtype, torch.int8) for weight in weights)
