"""Products in one form: what is computed over heads or groups of heads, written as matmuls of [B, H, ., .].

So that attention, which people write with any of them, is read in one form. What can't be told to be a
product over batch and heads is left as it is.
"""

from typing import Any

import torch
from torch import fx

from ..upstream.operators import Operator, existing

aten = torch.ops.aten
VIEWS = {aten.reshape.default, aten.view.default, *existing("aten::_unsafe_view")}
RESHAPES = {*VIEWS, aten.flatten.using_ints, aten.unflatten.int}
_COPIES = {aten.contiguous.default, aten.clone.default}


def spell_products(graph: fx.Graph) -> None:
    """Rewrite the products of `graph` in place; nodes need their `val`."""
    for node in list(graph.nodes):
        if node.target is aten.baddbmm.default:
            node = _without_addend(node)
        if node.target is aten.bmm.default or _is_folded_matmul(node):
            _spell_bmm(node)
        elif node.target is aten.einsum.default:
            _spell_einsum(node)
        elif node.target is aten.matmul.default:
            _spell_grouped(node)
    graph.eliminate_dead_code()


def insert(before: fx.Node, target: Operator, *args: object, **kwargs: object) -> fx.Node:
    """A new call before a node, with the value that it has in the trace."""
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, args, kwargs)
    node.meta = {k: v for k, v in before.meta.items() if k != "val"}
    given: Any = (args, kwargs)
    values, named = fx.map_arg(given, lambda n: n.meta["val"])
    node.meta["val"] = target(*values, **named)
    return node


def permuted(before: fx.Node, node: fx.Node, order: list[int]) -> fx.Node:
    """`node` with its dimensions in another order; permutations below it are taken into account."""
    while True:
        if node.target in _COPIES:
            node = node.args[0]
        elif node.target in (aten.transpose.int, aten.permute.default):
            below = _order(node)
            node, order = node.args[0], [below[i] for i in order]
        else:
            break
    moved = [i for i, place in enumerate(order) if i != place]
    if not moved:
        return node
    if len(moved) == 2:
        return insert(before, aten.transpose.int, node, *moved)
    return insert(before, aten.permute.default, node, order)


def _order(node: fx.Node) -> list[int]:
    dims = node.meta["val"].dim()
    if node.target is aten.permute.default:
        return [d % dims for d in node.args[1]]
    order = list(range(dims))
    a, b = (d % dims for d in node.args[1:])
    order[a], order[b] = order[b], order[a]
    return order


def keeps_last_two(node: fx.Node) -> bool:
    """Whether a reshape only folds heads into the batch or into groups, or parts them again."""
    before, after = node.args[0].meta["val"].shape, node.meta["val"].shape
    return {len(before), len(after)} <= {3, 4, 5} and str(before[-2:]) == str(after[-2:])


def _without_addend(node: fx.Node) -> fx.Node:
    """baddbmm(x, a, b) as beta * x + alpha * bmm(a, b); gives the bmm."""
    addend, left, right = node.args[:3]
    alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
    product = insert(node, aten.bmm.default, left, right)
    whole = product if alpha == 1 else insert(node, aten.mul.Tensor, product, alpha)
    if beta != 0:
        term = addend if beta == 1 else insert(node, aten.mul.Tensor, addend, beta)
        whole = insert(node, aten.add.Tensor, whole, term)
    _replace(node, whole)
    return product


def _is_folded_matmul(node: fx.Node) -> bool:
    return node.target is aten.matmul.default and all(n.meta["val"].dim() == 3 for n in node.args)


def _spell_bmm(node: fx.Node) -> None:
    """[B * H, n, m] @ [B * H, m, p] with heads folded into the batch."""
    left, right = (_parted(node, n) for n in node.args[:2])
    if left is None and right is None:
        return
    heads = (left or right).meta["val"].shape[1]
    # The rows of both sides meet in pairs, so the order known of one is that of the other.
    left = left or insert(node, aten.unflatten.int, node.args[0], 0, [-1, heads])
    right = right or insert(node, aten.unflatten.int, node.args[1], 0, [-1, heads])
    if left.meta["val"].shape[1] != right.meta["val"].shape[1]:
        return
    product = insert(node, aten.matmul.default, left, right)
    _replace(node, insert(node, aten.flatten.using_ints, product, 0, 1))


def _parted(user: fx.Node, node: fx.Node) -> fx.Node | None:
    """The [B, H, n, m] that [B * H, n, m] was folded from, if the graph shows it."""
    if node.target in _COPIES:
        return _parted(user, node.args[0])
    if node.target is aten.transpose.int and {d % 3 for d in node.args[1:]} == {1, 2}:
        source = _parted(user, node.args[0])
        return None if source is None else permuted(user, source, [0, 1, 3, 2])
    if node.target not in RESHAPES or not keeps_last_two(node):
        return None
    source = node.args[0]
    return source if source.meta["val"].dim() == 4 and isinstance(source.meta["val"].shape[1], int) else None


def _spell_grouped(node: fx.Node) -> None:
    """[B, Hkv, G, n, m] @ [B, Hkv, 1 or G, m, p], G query heads for each of Hkv, over Hkv * G heads."""
    left, right = node.args[:2]
    if any(n.meta["val"].dim() != 5 for n in (left, right)):
        return
    (heads, groups), others = (list(n.meta["val"].shape[1:3]) for n in (left, right))
    if (
        not isinstance(heads, int)
        or not isinstance(groups, int)
        or others not in ([heads, 1], [heads, groups])
    ):
        return
    if others == [heads, groups]:
        right = insert(node, aten.flatten.using_ints, right, 1, 2)
    else:
        right = _repeated(node, _narrowed(node, right), groups)
    left = insert(node, aten.flatten.using_ints, left, 1, 2)
    product = insert(node, aten.matmul.default, left, right)
    _replace(node, insert(node, aten.unflatten.int, product, 1, [heads, groups]))


def _narrowed(user: fx.Node, node: fx.Node) -> fx.Node:
    """[B, H, 1, n, m] as [B, H, n, m]."""
    if node.target is aten.unsqueeze.default and node.args[1] in (2, -3):
        return node.args[0]
    if node.target is aten.transpose.int and {d % 5 for d in node.args[1:]} == {3, 4}:
        return permuted(user, _narrowed(user, node.args[0]), [0, 1, 3, 2])
    return insert(user, aten.select.int, node, 2, 0)


def _repeated(user: fx.Node, node: fx.Node, groups: int) -> fx.Node:
    """Each head of [B, H, n, m] `groups` times; keys, whose last dimension is tokens, are transposed last."""
    repeat = aten.repeat_interleave.self_int
    if isinstance(node.meta["val"].shape[3], int):
        return insert(user, repeat, node, groups, 1)
    keys = permuted(user, node, [0, 1, 3, 2])
    return insert(user, aten.transpose.int, insert(user, repeat, keys, groups, 1), 2, 3)


def _spell_einsum(node: fx.Node) -> None:
    """Two operands that share two letters of the result (batch and heads) and sum over one.

    Each has one of its own (rows), and one of them maybe a second, of a fixed size: a head's groups.
    """
    terms, result = _letters(node)
    if result is None or len(terms) != 2 or any(len(set(t)) != len(t) for t in (*terms, result)):
        return
    shared = [c for c in result if c in terms[0] and c in terms[1]]
    summed = [c for c in terms[0] if c in terms[1] and c not in result]
    own = [[c for c in result if c in t and c not in shared] for t in terms]
    if (len(shared), len(summed)) != (2, 1) or sorted(map(len, own)) not in ([1, 1], [1, 2]):
        return
    operands = list(zip(terms, own, node.args[1], strict=True))
    operands.sort(key=lambda operand: (-len(operand[1]), result.index(operand[1][0])))
    (first, rows, left), (second, columns, right) = operands
    if {*first} != {*shared, *rows, *summed} or {*second} != {*shared, *columns, *summed}:
        return
    rows.sort(key=lambda c: not isinstance(left.meta["val"].shape[first.index(c)], int))
    left = permuted(node, left, [first.index(c) for c in (*shared, *rows, *summed)])
    right = permuted(node, right, [second.index(c) for c in (*shared, *summed, *columns)])
    if len(rows) == 2:
        right = insert(node, aten.unsqueeze.default, right, 2)
    product = insert(node, aten.matmul.default, left, right)
    made = [*shared, *rows, *columns]
    _replace(node, permuted(node, product, [made.index(c) for c in result]))
    _spell_grouped(product)


def _letters(node: fx.Node) -> tuple[list[str], str | None]:
    equation = str(node.args[0]).replace(" ", "")
    inputs, arrow, result = equation.partition("->")
    written = equation.replace("->", "").replace(",", "")
    return inputs.split(","), result if arrow and written.isalpha() else None


def _replace(old: fx.Node, new: fx.Node) -> None:
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)
