"""Find layers that pass information between tokens outside attention, by changing one token."""

from typing import Any

import torch
from torch import fx

from ..graph.captured import BATCH, LENGTH
from ..graph.nodes import operator_name, site_name
from ..graph.patterns import SOFTMAX, product_with_values
from .operators import OPERATORS

CHANGED = 3  # index of the token that is changed


@torch.no_grad()
def mixing_layer(module: fx.GraphModule) -> str | None:
    """The name of the first layer that passes information between tokens outside attention; None without one.

    The graph runs twice. In the second run token `CHANGED` is replaced, and attentions give their outputs of
    the first run. A value that still differs at another token, and that reaches the logits other than through
    an attention, has been changed by a recurrence, a convolution or a shift.
    """
    (logits,) = module.graph.output_node().all_input_nodes
    vocabulary = int(logits.meta["val"].shape[-1])
    shape = (_batch(module), LENGTH)
    ids = torch.randint(1, vocabulary, shape, generator=torch.Generator().manual_seed(0))
    ids = ids.to(logits.meta["val"].device)
    position = torch.arange(LENGTH, device=ids.device).expand(len(ids), -1).contiguous()
    attentions = set(filter(None, map(_attention_output, module.graph.nodes)))
    first = _Run(module, {})
    first.run(ids, position)
    changed = ids.clone()
    changed[:, CHANGED] = 0
    second = _Run(module, {n: first.outputs[n] for n in attentions})
    second.run(changed, position)
    outside = _read_outside(module.graph, attentions)
    for node, before in first.outputs.items():
        if node in outside and _differs_elsewhere(before, second.outputs[node]):
            return site_name(node)
    return None


def _read_outside(graph: fx.Graph, attentions: set[fx.Node]) -> set[fx.Node]:
    """The nodes that reach the logits on a path through no attention's output."""
    found, pending = set[fx.Node](), [graph.output_node()]
    while pending:
        node = pending.pop()
        if node not in found and node not in attentions:
            found.add(node)
            pending.extend(node.all_input_nodes)
    return found


def _batch(module: fx.GraphModule) -> int:
    """The number of rows that the graph is made for; BATCH if it takes any number."""
    ids = next(node for node in module.graph.nodes if node.op == "placeholder")
    rows = ids.meta["val"].shape[0]
    return rows if isinstance(rows, int) else BATCH


def _attention_output(node: fx.Node) -> fx.Node | None:
    """The output of the attention whose operator or softmax `node` is; None for other nodes."""
    name = operator_name(node)
    if name in OPERATORS:
        return node
    return product_with_values(node)[1] if name in SOFTMAX else None


def mixing_reason(module: fx.GraphModule) -> str | None:
    """A clause that says why a decoder with such a layer can't be compiled; None if it has none."""
    layer = mixing_layer(module)
    if layer is None:
        return None
    return (
        f"{layer} passes something from token to token outside attention that the pass can read (a "
        "recurrence, a convolution, a linear attention, an attention over hashed or shifted tokens), which a "
        "session doesn't carry"
    )


class _Run(fx.Interpreter):
    """Runs a graph in which the outputs of some nodes are given, and keeps the outputs of all nodes."""

    def __init__(self, module: fx.GraphModule, given: dict[fx.Node, Any]) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.outputs = dict[fx.Node, Any]()
        self._given = given

    def run_node(self, node: fx.Node) -> Any:
        result = self._given[node] if node in self._given else super().run_node(node)
        self.outputs[node] = result
        return result


def _differs_elsewhere(before: Any, after: Any) -> bool:
    """Whether two values of a node differ at a token that wasn't changed.

    Only floating-point tensors with exactly one dimension of LENGTH tokens are compared.
    """
    if not isinstance(before, torch.Tensor) or not before.is_floating_point():
        return False
    tokens = [dim for dim, size in enumerate(before.shape) if size == LENGTH]
    if len(tokens) != 1 or before.shape != after.shape:
        return False
    kept = [token for token in range(LENGTH) if token != CHANGED]
    chosen = torch.tensor(kept, device=before.device)
    before, after = (x.index_select(tokens[0], chosen) for x in (before, after))
    return not torch.allclose(before, after, rtol=1e-3, atol=1e-4, equal_nan=True)
