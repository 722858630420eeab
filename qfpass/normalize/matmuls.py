"""Write products over heads or groups of heads (bmm, baddbmm, einsum) as matmuls of [B, H, ., .].

Models compute attention with any of them; later steps read one form. A product that isn't recognised as one
over batch and heads is left as it is.
"""

import torch
from torch import fx

from ..graph.nodes import args_of, insert
from ..graph.patterns import COPIES, RESHAPES, keeps_last_two, permuted

aten = torch.ops.aten


def rewrite_matmuls(graph: fx.Graph) -> None:
    """Rewrite the products of `graph` in place; nodes need their traced value as `meta["val"]`."""
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


def _without_addend(node: fx.Node) -> fx.Node:
    """Replace baddbmm(x, a, b) by beta * x + alpha * bmm(a, b), and return the bmm node."""
    addend, left, right = args_of(node)[:3]
    alpha, beta = node.kwargs.get("alpha", 1), node.kwargs.get("beta", 1)
    product = insert(node, aten.bmm.default, left, right)
    whole = product if alpha == 1 else insert(node, aten.mul.Tensor, product, alpha)
    if beta != 0:
        term = addend if beta == 1 else insert(node, aten.mul.Tensor, addend, beta)
        whole = insert(node, aten.add.Tensor, whole, term)
    _replace(node, whole)
    return product


def _is_folded_matmul(node: fx.Node) -> bool:
    """Whether a node is a matmul of 3-d tensors, which computes what bmm does."""
    return node.target is aten.matmul.default and all(n.meta["val"].dim() == 3 for n in args_of(node))


def _spell_bmm(node: fx.Node) -> None:
    """Replace [B * H, n, m] @ [B * H, m, p], heads folded into the batch, by a product over [B, H]."""
    left, right = (_unfolded(node, n) for n in args_of(node)[:2])
    known = left or right
    if known is None:
        return
    heads = known.meta["val"].shape[1]
    # Matrix i of one side meets matrix i of the other, so both sides fold batch and heads in the same order.
    left = left or insert(node, aten.unflatten.int, args_of(node)[0], 0, [-1, heads])
    right = right or insert(node, aten.unflatten.int, args_of(node)[1], 0, [-1, heads])
    if left.meta["val"].shape[1] != right.meta["val"].shape[1]:
        return
    product = insert(node, aten.matmul.default, left, right)
    _replace(node, insert(node, aten.flatten.using_ints, product, 0, 1))


def _unfolded(user: fx.Node, node: fx.Node) -> fx.Node | None:
    """The node [B, H, n, m] that `node` [B * H, n, m] was folded from, or None if the graph shows none."""
    if node.target in COPIES:
        return _unfolded(user, args_of(node)[0])
    if node.target is aten.transpose.int and {d % 3 for d in args_of(node)[1:]} == {1, 2}:
        source = _unfolded(user, args_of(node)[0])
        return None if source is None else permuted(user, source, [0, 1, 3, 2])
    if node.target not in RESHAPES or not keeps_last_two(node):
        return None
    source = args_of(node)[0]
    return source if source.meta["val"].dim() == 4 and isinstance(source.meta["val"].shape[1], int) else None


def _spell_grouped(node: fx.Node) -> None:
    """Replace [B, Hkv, G, n, m] @ [B, Hkv, 1 or G, m, p], G query heads per kv head, by Hkv * G heads."""
    left, right = args_of(node)[:2]
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
        right = _repeated(node, _without_group_dim(node, right), groups)
    left = insert(node, aten.flatten.using_ints, left, 1, 2)
    product = insert(node, aten.matmul.default, left, right)
    _replace(node, insert(node, aten.unflatten.int, product, 1, [heads, groups]))


def _without_group_dim(user: fx.Node, node: fx.Node) -> fx.Node:
    """A node [B, H, n, m] that holds `node` [B, H, 1, n, m]."""
    if node.target is aten.unsqueeze.default and args_of(node)[1] in (2, -3):
        return args_of(node)[0]
    if node.target is aten.transpose.int and {d % 5 for d in args_of(node)[1:]} == {3, 4}:
        return permuted(user, _without_group_dim(user, args_of(node)[0]), [0, 1, 3, 2])
    return insert(user, aten.select.int, node, 2, 0)


def _repeated(user: fx.Node, node: fx.Node, groups: int) -> fx.Node:
    """A node that repeats each head of `node` [B, H, n, m] `groups` times.

    Transposed keys, whose last dimension is tokens, are repeated before the transpose.
    """
    repeat = aten.repeat_interleave.self_int
    if isinstance(node.meta["val"].shape[3], int):
        return insert(user, repeat, node, groups, 1)
    keys = permuted(user, node, [0, 1, 3, 2])
    return insert(user, aten.transpose.int, insert(user, repeat, keys, groups, 1), 2, 3)


def _spell_einsum(node: fx.Node) -> None:
    """Replace an einsum of two operands that share batch and heads and sum over one letter by a matmul.

    Each operand has one more letter in the result (rows, columns). One of them may have a second, of a fixed
    size: the groups of a head.
    """
    terms, result = _letters(node)
    if result is None or len(terms) != 2 or any(len(set(t)) != len(t) for t in (*terms, result)):
        return
    shared = [c for c in result if c in terms[0] and c in terms[1]]
    summed = [c for c in terms[0] if c in terms[1] and c not in result]
    own = [[c for c in result if c in t and c not in shared] for t in terms]
    if (len(shared), len(summed)) != (2, 1) or sorted(map(len, own)) not in ([1, 1], [1, 2]):
        return
    operands = list(zip(terms, own, args_of(node)[1], strict=True))
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
    """The letters of an einsum's operands and of its result; no result if it isn't written out in letters."""
    equation = str(args_of(node)[0]).replace(" ", "")
    inputs, arrow, result = equation.partition("->")
    written = equation.replace("->", "").replace(",", "")
    return inputs.split(","), result if arrow and written.isalpha() else None


def _replace(old: fx.Node, new: fx.Node) -> None:
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)
