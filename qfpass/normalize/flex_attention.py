"""Write flex_attention out as the softmax that it computes, so that it is read like any other attention.

It computes softmax(score_mod(scale * query @ key^T) where mask_mod) @ value. score_mod and mask_mod are
elementwise, so they are applied to whole tensors: the scores, and indices that broadcast over batch, heads,
queries and keys.
"""

import operator
from typing import Any

import torch
from torch import fx

from ..errors import UnsupportedOpError
from ..graph.nodes import args_of, site_name
from ..upstream.fake_tensors import mode_of
from ..upstream.operators import FlexCall, flex_attention_call

aten = torch.ops.aten


def rewrite_flex_attention(module: fx.GraphModule, graph: fx.Graph) -> None:
    """Rewrite the flex_attention calls of `graph` in place; `module` holds the graph's attributes.

    Raises:
        UnsupportedOpError: a call's log-sum-exps are read, or a function given to it can't be written out.
    """
    for node in list(graph.nodes):
        if call := flex_attention_call(node):
            _Writer(module, node).write(call)


class _Writer:
    """Writes one flex_attention call out, before its node."""

    def __init__(self, module: fx.GraphModule, node: fx.Node) -> None:
        self._module, self._node, self._graph = module, node, node.graph
        self._mode = mode_of(args_of(node)[0].meta["val"])

    def write(self, call: FlexCall) -> None:
        """Insert the nodes that compute `call`, and replace its node by them."""
        query, key, value = call.query, call.key, call.value
        group = query.meta["val"].shape[1] // key.meta["val"].shape[1]
        if group > 1:
            key, value = (self._call(aten.repeat_interleave.self_int, n, group, 1) for n in (key, value))
        indices = self._indices(query, key)
        product = self._call(aten.matmul.default, query, self._call(aten.transpose.int, key, 2, 3))
        logits = self._call(aten.mul.Tensor, product, call.scale)
        logits = self._inline(call.score_mod, [logits, *indices, *call.score_inputs])
        seen = self._inline(call.mask_mod, [*indices, *call.mask_inputs])
        sizes = [self._call(aten.sym_size.int, n, 2) for n in (query, key)]
        seen = self._call(aten.expand.default, seen, [1, 1, *sizes])
        hidden = self._call(aten.logical_not.default, seen)
        logits = self._call(aten.masked_fill.Scalar, logits, hidden, float("-inf"))
        weights = self._call(aten.softmax.int, logits, -1)
        self._replace(self._call(aten.matmul.default, weights, value))

    def _replace(self, output: fx.Node) -> None:
        """Let users of the call's first output read `output`, and erase the call."""
        for user in list(self._node.users):
            if user.target is not operator.getitem or (args_of(user)[1] != 0 and user.users):
                raise UnsupportedOpError(
                    f"{site_name(self._node)}: the model also reads flex_attention's log-sum-exps "
                    f"({user.name}), which would need the evicted keys."
                )
            if args_of(user)[1] == 0:
                user.replace_all_uses_with(output)
            self._graph.erase_node(user)
        self._graph.erase_node(self._node)

    def _indices(self, query: fx.Node, key: fx.Node) -> list[fx.Node]:
        """The batch, head, query and key indices, each a 4-d tensor of size 1 but along its own dimension."""
        indices = []
        for dim, (source, size) in enumerate(((query, 0), (query, 1), (query, 2), (key, 2))):
            length = self._call(aten.sym_size.int, source, size)
            device = source.meta["val"].device
            index = self._call(aten.arange.default, length, device=device)
            shape = [-1 if d == dim else 1 for d in range(4)]
            indices.append(self._call(aten.reshape.default, index, shape))
        return indices

    def _inline(self, function: fx.Node, inputs: list[Any]) -> Any:
        """The result of a function's graph, copied before the call's node and applied to `inputs`."""
        body = getattr(self._module, str(function.target))
        values, given = dict[fx.Node, Any](), iter(inputs)
        for inner in body.graph.nodes:
            if inner.op == "placeholder":
                values[inner] = next(given)
            elif inner.op == "call_function":
                args, kwargs = fx.map_arg((args_of(inner), inner.kwargs), values.__getitem__)
                values[inner] = self._call(inner.target, *args, **kwargs)
            elif inner.op == "output":
                (result,) = (
                    args_of(inner)[0] if isinstance(args_of(inner)[0], (tuple, list)) else args_of(inner)
                )
                return values[result]
            else:
                raise UnsupportedOpError(
                    f"{site_name(self._node)}: a function given to flex_attention contains {inner.op} "
                    f"{inner.target}, which the pass can't translate."
                )
        raise AssertionError("a graph without output")

    def _call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A new call of `target` before the flex_attention node, with its traced value."""
        with self._graph.inserting_before(self._node):
            node = self._graph.call_function(target, args, kwargs)
        node.meta = {k: v for k, v in self._node.meta.items() if k != "val"}
        values, named = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
        with self._mode:
            node.meta["val"] = target(*values, **named)
        return node
