"""FX graphs: removal of equal nodes, and serialisation."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import fx, nn

from .entry import Needed, only_fast


@Needed
def merge_equal_nodes(graph: fx.Graph) -> fx.Graph:
    """A copy of the graph in which equal nodes are one (common subexpression elimination).

    Without it: each attention would seem to have a mask of its own, and layers no structure in common.
    """
    from torch._functorch.compile_utils import fx_graph_cse

    return fx_graph_cse(graph)


class GraphPickling(NamedTuple):
    """Functions from a graph to bytes and back, which keep operators, fake tensors and symbolic sizes."""

    dump: Callable[[fx.Graph], bytes]
    load: Callable[[bytes], fx.Graph]


def _no_pickling() -> GraphPickling | None:
    return None


@only_fast("capture_cache", plain=_no_pickling)
def graph_pickling() -> GraphPickling | None:
    """The functions that serialise graphs; they may raise anything for a graph with unusual contents.

    Without it: no graph is kept between processes.
    """
    from torch._subclasses import FakeTensorMode
    from torch.fx._graph_pickler import GraphPickler, Options
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    dumps, loads = GraphPickler.dumps, GraphPickler.loads
    options = Options(ops_filter=None, node_metadata_key_filter=None)

    def dump(graph: fx.Graph) -> bytes:
        bare = fx.GraphModule(nn.Module(), fx.Graph())
        bare._graph = graph  # past the property, which would generate Python
        return dumps(bare, options)

    def load(kept: bytes) -> fx.Graph:
        bare: Any = loads(kept, FakeTensorMode(shape_env=ShapeEnv()))
        graph: fx.Graph = bare.graph
        return graph

    return GraphPickling(dump, load)
