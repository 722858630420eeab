"""Find layers that pass information between tokens outside attention, by changing one token."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import fx

from ..graph.captured import BATCH, LENGTH, id_limit
from ..graph.nodes import operator_name, site_name
from ..graph.patterns import SOFTMAX, product_with_values
from ..upstream.process_groups import hand_offs
from .operators import OPERATORS

CHANGED = 3  # index of the token that is changed


@torch.no_grad()
def mixing_layer(module: fx.GraphModule) -> str | None:
    """The name of the first layer that passes information between tokens outside attention; None without one.

    The graph runs twice. In the second run token `CHANGED` is replaced, and attentions give their outputs of
    the first run. A value that still differs at another token, and that reaches the logits other than through
    an attention, has been changed by a recurrence, a convolution or a shift.
    """
    ids, position = trace_inputs(module)
    attentions = attention_outputs(module.graph)
    first = Recorder(module)
    first.run(ids, position)
    changed = ids.clone()
    changed[:, CHANGED] = 0
    second = Recorder(module, {n: first.outputs[n] for n in attentions})
    second.run(changed, position)
    outside = reach_logits_outside(module.graph, attentions)
    for node, before in first.outputs.items():
        is_real = isinstance(before, torch.Tensor) and before.is_floating_point()
        if is_real and node in outside and differ_elsewhere(before, second.outputs[node]):
            return site_name(node)
    return None


def trace_inputs(module: fx.GraphModule) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids without 0, and positions, [B, LENGTH] int64, for a decoder's graph."""
    ids = next(node for node in module.graph.nodes if node.op == "placeholder").meta["val"]
    rows = ids.shape[0] if isinstance(ids.shape[0], int) else BATCH
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(1, id_limit(module), (rows, LENGTH), generator=generator).to(ids.device)
    position = torch.arange(LENGTH, device=ids.device).expand(rows, -1).contiguous()
    return chosen, position


def reach_logits_outside(graph: fx.Graph, attentions: Collection[fx.Node]) -> set[fx.Node]:
    """The nodes that reach the logits on a path through none of these attentions' outputs."""
    found, pending = set[fx.Node](), [graph.output_node()]
    while pending:
        node = pending.pop()
        if node not in found and node not in attentions:
            found.add(node)
            pending.extend(node.all_input_nodes)
    return found


def attention_outputs(graph: fx.Graph) -> set[fx.Node]:
    """The outputs of all attentions, be they operators or softmaxes between two products."""
    found = set[fx.Node]()
    for node in graph.nodes:
        name = operator_name(node)
        output = node if name in OPERATORS else product_with_values(node)[1] if name in SOFTMAX else None
        if output is not None:
            found.add(output)
    return found


def mixing_reason(module: fx.GraphModule) -> str | None:
    """A clause that says why a decoder with such a layer can't be compiled; None if it has none.

    None too for one stage of a pipeline, which can't be run without the others.
    """
    if hand_offs(module.graph):
        return None
    layer = mixing_layer(module)
    if layer is None:
        return None
    return (
        f"{layer} passes information between tokens by something other than plain attention (a recurrence, "
        "a convolution, linear attention, or attention over hashed or shifted tokens), and a session doesn't "
        "store that"
    )


class Recorder(fx.Interpreter):
    """Runs a graph in which the outputs of some nodes are given.

    Attributes:
        outputs: those of the nodes `kept`, by default of all.
    """

    def __init__(
        self,
        module: fx.GraphModule,
        given: Mapping[fx.Node, Any] = MappingProxyType({}),
        kept: Collection[fx.Node] | None = None,
    ) -> None:
        super().__init__(module)
        self.outputs = dict[fx.Node, Any]()
        self._given, self._kept = given, kept

    def run_node(self, node: fx.Node) -> Any:
        """The node's value, computed or given."""
        result = self._given[node] if node in self._given else super().run_node(node)
        if self._kept is None or node in self._kept:
            self.outputs[node] = result
        return result


def token_dim(value: Any) -> int | None:
    """The only dimension of LENGTH tokens of a tensor; None for anything else."""
    dims = [dim for dim, size in enumerate(getattr(value, "shape", ())) if size == LENGTH]
    return dims[0] if len(dims) == 1 else None


def differ_elsewhere(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Whether two values of a node differ at a token other than CHANGED.

    Only tensors with exactly one dimension of LENGTH tokens are compared.
    """
    dim = token_dim(before)
    if dim is None or before.shape != after.shape:
        return False
    kept = torch.tensor([token for token in range(LENGTH) if token != CHANGED], device=before.device)
    before, after = (x.index_select(dim, kept).double() for x in (before, after))
    return not torch.allclose(before, after, rtol=1e-3, atol=1e-4, equal_nan=True)
