"""The operators that attention is written with, and how to look through reshapes, casts and transposes."""

import torch
from torch import fx

from ..upstream.operators import available_operators
from .nodes import args_of, insert

aten = torch.ops.aten
VIEWS = {aten.reshape.default, aten.view.default, *available_operators("aten::_unsafe_view")}
RESHAPES = {*VIEWS, aten.flatten.using_ints, aten.unflatten.int}
CASTS = {aten.to.dtype, aten.contiguous.default, aten.clone.default, *available_operators("aten::_to_copy")}
PRODUCTS = {aten.matmul.default, aten.bmm.default, aten.baddbmm.default, aten.einsum.default}
SOFTMAX = {"aten::softmax", "aten::_softmax", "aten::_safe_softmax"}
COPIES = {aten.contiguous.default, aten.clone.default}


def permuted(before: fx.Node, node: fx.Node, order: list[int]) -> fx.Node:
    """A node that holds `node` with its dimensions permuted by `order`, inserted before the node `before`.

    Permutations and copies that made `node` are skipped and merged into `order`. If that leaves nothing to
    permute, the result is an existing node.
    """
    while True:
        if node.target in COPIES:
            node = args_of(node)[0]
        elif node.target in (aten.transpose.int, aten.permute.default, aten.mT.default):
            below = _order(node)
            node, order = args_of(node)[0], [below[i] for i in order]
        else:
            break
    moved = [i for i, place in enumerate(order) if i != place]
    if not moved:
        return node
    if len(moved) == 2:
        return insert(before, aten.transpose.int, node, *moved)
    return insert(before, aten.permute.default, node, order)


def _order(node: fx.Node) -> list[int]:
    """The order in which a transpose, permute or mT node puts the dimensions of its input."""
    dims = node.meta["val"].dim()
    if node.target is aten.permute.default:
        return [d % dims for d in args_of(node)[1]]
    order = list(range(dims))
    swapped = (-2, -1) if node.target is aten.mT.default else args_of(node)[1:]
    a, b = (d % dims for d in swapped)
    order[a], order[b] = order[b], order[a]
    return order


def keeps_last_two(node: fx.Node) -> bool:
    """Whether a reshape keeps the last two dimensions, and only merges or splits batch, heads and groups."""
    before, after = args_of(node)[0].meta["val"].shape, node.meta["val"].shape
    return {len(before), len(after)} <= {3, 4, 5} and str(before[-2:]) == str(after[-2:])


def product_with_values(softmax: fx.Node) -> tuple[fx.Node, fx.Node | None]:
    """The node that the product with the values reads as attention weights, and that product.

    Casts, slices and reshapes of heads between `softmax` and the product are skipped. The product is None if
    another operator, or more than one node, reads the weights.
    """
    node = softmax
    while len(node.users) == 1:
        (user,) = node.users
        if user.target in PRODUCTS:
            return node, user
        folds = user.target in RESHAPES and keeps_last_two(user)
        if user.target not in CASTS and user.target is not aten.slice.Tensor and not folds:
            return node, None
        node = user
    return node, None
