"""FX graphs: modules whose Python nobody reads, graphs without equal nodes, graphs as bytes."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from .entry import Needed, only_fast
from .settings import as_it_is, set_meanwhile

ALWAYS_WITH_STACK_TRACES = torch.__version__ < "2.13"  # earlier versions have no setting for them


def _graph_module(root: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    return fx.GraphModule(root, graph)


@only_fast("lean_tracing", plain=_graph_module)
def lazy_graph_module(root: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """A graph's module for which Python is generated when it is first called or its `code` is read.

    Without it: Python is generated at once, also of graphs that are only read.
    """
    from torch.fx._lazy_graph_module import _LazyGraphModule

    return _LazyGraphModule(root, graph)


@only_fast("lean_tracing", plain=as_it_is)
def without_stack_traces() -> AbstractContextManager[Any]:
    """Inside, no stack trace is kept for each node: a tenth of the time and more.

    It is a setting of the process: if another thread has turned them off already, that is left to it.

    Without it: a stack trace is taken for each node.
    """
    if ALWAYS_WITH_STACK_TRACES and not hasattr(fx.config, "do_not_emit_stack_traces"):
        return as_it_is()
    return set_meanwhile(fx.config, "do_not_emit_stack_traces", True)


@Needed
def merge_equal_nodes(graph: fx.Graph) -> fx.Graph:
    """A copy in which what is computed twice is computed once.

    Without it: each attention would seem to have a mask of its own, and layers no structure in common.
    """
    from torch._functorch.compile_utils import fx_graph_cse

    return fx_graph_cse(graph)


class GraphPickling(NamedTuple):
    """Graphs to bytes and back, with what their nodes hold of a trace: operators, fake tensors, symbols."""

    dump: Callable[[fx.Graph], bytes]
    load: Callable[[bytes], fx.Graph]


def _no_pickling() -> GraphPickling | None:
    return None


@only_fast("capture_cache", plain=_no_pickling)
def graph_pickling() -> GraphPickling | None:
    """How graphs are written down; a graph that holds something strange raises anything.

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
