"""The passes that give each kind of computation one form, in their order."""

import torch
from torch import fx

from .flex_attention import rewrite_flex_attention
from .in_place import rewrite_in_place
from .matmuls import rewrite_matmuls
from .shape_sources import rewrite_shape_sources
from .sink_gates import rewrite_sink_gates
from .written_buffers import rewrite_written_buffers

aten = torch.ops.aten


def normalize(module: fx.GraphModule) -> None:
    """Rewrite the graph of `module` in place, so that later steps meet one form of each computation.

    Nodes need their traced value as `meta["val"]`. What a pass doesn't recognise for certain stays as it is.

    Raises:
        CaptureError: the graph keeps state in one of its buffers.
        UnsupportedOpError: a call of flex_attention can't be written out.
    """
    graph = module.graph
    rewrite_shape_sources(graph)
    _reshape_instead_of_view(graph)
    rewrite_flex_attention(module, graph)
    rewrite_written_buffers(graph)
    rewrite_in_place(graph)
    rewrite_matmuls(graph)
    rewrite_sink_gates(graph)


def _reshape_instead_of_view(graph: fx.Graph) -> None:
    """Replace view by reshape, since a kernel's output may have strides with which view fails."""
    for node in graph.nodes:
        if node.target is aten.view.default:
            node.target = aten.reshape.default
