"""Run a graph whose values lie on several devices as parts of one device each, with hand-overs in between.

A part holds the nodes of one device that follow equally many hand-overs. Each is compiled by itself, so that
no compiler meets two devices; hand-overs run as they are.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx

from ..graph.devices import HAND_OVERS, size_handed_over
from ..graph.nodes import args_of, attribute
from ..regions.pieces import dims_of_size
from ..upstream import dynamo

Call = Callable[..., Any]


class _Key(NamedTuple):
    """Of nodes that make a part, which run in the order of their keys."""

    hand_overs: int  # on the longest way to a node
    computes: bool  # else they hand over themselves
    device: str


class _Part(NamedTuple):
    """Some nodes as a graph of their own: the values of `inputs` -> those of `outputs`."""

    call: Call
    inputs: tuple[fx.Node, ...]
    outputs: tuple[fx.Node, ...]


class ByDevice:
    """A callable like `module`, cut at its first call, which shows where inputs lie.

    Args:
        compile: compiles a part.
        longest: calls have up to `longest` tokens; None if all have equally many.
    """

    def __init__(
        self, module: fx.GraphModule, compile: Callable[[fx.GraphModule], Call], longest: int | None
    ) -> None:
        self._module, self._compile, self._longest = _inlined(module), compile, longest
        nodes = self._module.graph.nodes
        self._inputs = [node for node in nodes if node.op == "placeholder"]
        self._parts: list[_Part] | None = None

    def __call__(self, *inputs: Any) -> Any:
        values = dict(zip(self._inputs, inputs, strict=True))
        if self._parts is None:
            self._parts = self._cut(values)
        for part in self._parts:
            found = part.call(*(values[node] for node in part.inputs))
            values |= zip(part.outputs, found, strict=True)
            self._mark(part.outputs, values)
        return fx.map_arg(args_of(self._module.graph.output_node())[0], values.__getitem__)

    def _mark(self, made: Sequence[fx.Node], values: dict[fx.Node, Any]) -> None:
        """Mark sizes that differ from call to call in what a part made, which others read."""
        for node in made:
            if node.target is size_handed_over:
                dynamo.mark_unbacked(values[node], 0)
            elif self._longest is not None:
                for dim in dims_of_size(node, self._inputs[0].meta["val"].shape[1]):
                    dynamo.maybe_mark_dynamic(values[node], dim)

    def _cut(self, values: dict[fx.Node, Any]) -> list[_Part]:
        graph = self._module.graph
        keys = _keys_of(self._module, values)
        by_key = defaultdict[_Key, list[fx.Node]](list)
        for node, key in keys.items():
            by_key[key].append(node)
        read = {n for n in graph.output_node().all_input_nodes if n in keys}
        read |= {
            n for node, key in keys.items() for n in node.all_input_nodes if n in keys and keys[n] != key
        }
        return [self._part(key, by_key[key], read) for key in sorted(by_key)]

    def _part(self, key: _Key, nodes: Sequence[fx.Node], read: set[fx.Node]) -> _Part:
        """The part with these nodes, of which it gives those in `read`."""
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        operands = dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in nodes)
        inputs = tuple(n for n in operands if n.op != "get_attr")
        for node in inputs:
            copies[node] = graph.placeholder(node.name)
        for node in operands:
            if node.op == "get_attr":
                copies[node] = graph.node_copy(node)
        for node in nodes:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        outputs = tuple(node for node in nodes if node in read)
        graph.output(tuple(copies[node] for node in outputs))
        module = fx.GraphModule(self._module, graph)
        return _Part(self._compile(module) if key.computes else module, inputs, outputs)


def _keys_of(module: fx.GraphModule, values: dict[fx.Node, Any]) -> dict[fx.Node, _Key]:
    """The key of each node that computes something; `values` are those of the inputs."""
    keys, passed, devices = dict[fx.Node, _Key](), dict[fx.Node, int](), dict[fx.Node, torch.device | None]()
    home = next(v.device for v in values.values() if isinstance(v, torch.Tensor))
    for node in module.graph.nodes:
        passed[node] = max((passed[n] for n in node.all_input_nodes), default=0)
        if node.op in ("placeholder", "get_attr"):
            value = values[node] if node.op == "placeholder" else attribute(module, node)
            devices[node] = value.device if isinstance(value, torch.Tensor) else None
        elif node.target in HAND_OVERS:
            passed[node] += 1
            devices[node] = args_of(node)[1]
            keys[node] = _Key(passed[node], False, "")
        elif node.op != "output":
            devices[node] = _device_of(node, devices, home)
            keys[node] = _Key(passed[node], True, str(devices[node]))
    return keys


def _device_of(
    node: fx.Node, devices: dict[fx.Node, torch.device | None], home: torch.device
) -> torch.device:
    """Where a node computes: a number on the processor goes along with tensors elsewhere."""
    if isinstance(named := node.kwargs.get("device"), torch.device) and named.type == home.type:
        return named
    operands = (devices[n] for n in node.all_input_nodes)
    return next((d for d in operands if d is not None and d.type == home.type), home)


def _inlined(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of `module` in which graphs that hand over stand in the place of their calls."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    while calls := [node for node in graph.nodes if _called_on_several(module, node)]:
        for call in calls:
            _inline(module, graph, call)
    return fx.GraphModule(module, graph)


def _inline(module: fx.GraphModule, graph: fx.Graph, call: fx.Node) -> None:
    inner: Any = module.get_submodule(str(call.target))
    inputs = [node for node in inner.graph.nodes if node.op == "placeholder"]
    copies = dict(zip(inputs, args_of(call), strict=True))
    with graph.inserting_before(call):
        result: Any = graph.graph_copy(inner.graph, copies)
    for node, copy in copies.items():
        if node.op in ("call_module", "get_attr"):
            copy.target = f"{call.target}.{node.target}"
    call.replace_all_uses_with(result)
    graph.erase_node(call)


def lies_on_several(module: torch.nn.Module) -> bool:
    """Whether a graph, or one that it calls, hands values from one device to another."""
    return isinstance(module, fx.GraphModule) and any(
        node.target in HAND_OVERS or _called_on_several(module, node) for node in module.graph.nodes
    )


def _called_on_several(module: torch.nn.Module, node: fx.Node) -> bool:
    return node.op == "call_module" and lies_on_several(module.get_submodule(str(node.target)))
