"""Turn a graph that Dynamo traced into a decoder module: (input_ids, position_ids) -> logits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from ..errors import CaptureError
from ..graph.nodes import args_of
from ..upstream.dynamo_graph import example_of, is_argument, last_step, name_in_model, source_of

IN_PIECES = (
    "If these aren't the model's own arguments and results, Dynamo traced it in pieces, of which "
    "torch.compile(fullgraph=True) says why, or as part of a function: compile the module itself."
)


@dataclass(frozen=True)
class DynamoDecoder:
    """A decoder made from a Dynamo graph, and which of that graph's inputs are what.

    Attributes:
        module: (input_ids [B, S], position_ids [B, S] if the model takes them) -> logits [B, S, V]. Its
            parameters and buffers are the model's own tensors, under their own names.
        ids, positions: the indices of these two among the graph's inputs.
        parts: the model's parameters and buffers among the inputs, by index.
        numbers: the numbers among the inputs, by index: ints, and floats, which Dynamo passes as tensors.
        batch, length: the sizes that the graph is made for; None for any.
    """

    module: fx.GraphModule
    ids: int
    positions: int | None
    parts: dict[int, torch.Tensor]
    numbers: dict[int, float]
    batch: int | None
    length: int | None

    def belongs_to(self, inputs: Sequence[Any]) -> bool:
        """Whether a call's inputs hold the parameters, buffers and numbers that the decoder was made with."""
        return all(inputs[i] is part for i, part in self.parts.items()) and all(
            _number(inputs[i]) == number for i, number in self.numbers.items()
        )


def note_sources(traced: fx.GraphModule) -> None:
    """Write into each placeholder's meta where it comes from, since Dynamo forgets that after compilation."""
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            node.meta["source_name"] = source_of(node)


def read_dynamo_graph(traced: fx.GraphModule, inputs: Sequence[Any]) -> DynamoDecoder:
    """The decoder that a torch.compile backend's graph computes, with the weights and numbers of one call.

    `inputs` are all of that call: Dynamo makes parameters, buffers, sizes and numbers inputs of its graph,
    beside the call's arguments. `note_sources` must have run on the graph while it was being compiled.

    Raises:
        CaptureError: the call has arguments besides ids and positions, or returns more than logits.
    """
    placeholders = [node for node in traced.graph.nodes if node.op == "placeholder"]
    ids, positions = _arguments(placeholders)
    graph, new, attributes = fx.Graph(), dict[fx.Node, Any](), _children(traced)
    new[placeholders[ids]] = graph.placeholder("input_ids")
    if positions is not None:
        new[placeholders[positions]] = _placed(graph, placeholders[positions])
    parts, numbers = dict[int, torch.Tensor](), dict[int, float]()
    for i, (node, value) in enumerate(zip(placeholders, inputs, strict=True)):
        if node in new:
            continue
        size = _size(graph, node, new) if _is_size(node) else None
        if size is not None:
            new[node] = size
        elif _is_size(node) or _is_number(node):
            new[node] = numbers[i] = _number(value)
        else:
            name = name_in_model(_source(node))
            new[node], attributes[name], parts[i] = graph.get_attr(name), value, value
    for node in traced.graph.nodes:
        if node.op == "output":
            graph.output(new[_only_output(node)])
        elif node.target == "item" and isinstance(new[args_of(node)[0]], (int, float)):
            new[node] = new[args_of(node)[0]]
        elif node not in new:
            new[node] = graph.node_copy(node, new.__getitem__)
    module = fx.GraphModule(attributes, graph).eval()
    batch, length = (None if _varies(size) else int(size) for size in example_of(placeholders[ids]).shape)
    return DynamoDecoder(module, ids, positions, parts, numbers, batch, length)


def _arguments(placeholders: Sequence[fx.Node]) -> tuple[int, int | None]:
    """The indices of the ids and of the positions, which have "pos" in their name, or None without positions.

    Raises:
        CaptureError: there are other arguments, or no ids.
    """
    given = [i for i, node in enumerate(placeholders) if _is_argument(node)]
    positions = [i for i in given if "pos" in _source(placeholders[i])]
    ids = [i for i in given if i not in positions and _is_ids(placeholders[i])]
    if len(ids) == 1 and len(positions) <= 1 and len(given) == len(ids) + len(positions):
        return ids[0], positions[0] if positions else None
    names = list(dict.fromkeys(_argument_name(placeholders[i]) for i in given))
    shown = ", ".join(names[:5] + ["..."] * (len(names) > 5)) or "nothing"
    raise CaptureError(
        f"a graph with the arguments {shown} can't be compiled by the qfpass backend, which takes token ids "
        f"and position_ids=, by name: leave masks and caches out and pass use_cache=False. {IN_PIECES}"
    )


def _placed(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """A placeholder for positions [B, S], or its first row [S] if the traced graph takes one row."""
    positions = graph.placeholder("position_ids")
    if example_of(node).dim() == 2:
        return positions
    return graph.call_function(torch.select, (positions, 0, 0))


def _size(graph: fx.Graph, node: fx.Node, arguments: dict[fx.Node, Any]) -> fx.Node | None:
    """A new call for the size or stride of an argument that `node` stands for; None if it stands for none."""
    symbol = example_of(node).node.expr
    for argument, value in arguments.items():
        if not isinstance(example_of(argument), torch.Tensor):
            continue
        for method in ("size", "stride"):
            for dim, size in enumerate(getattr(example_of(argument), method)()):
                if _varies(size) and size.node.expr == symbol:
                    return graph.call_method(method, (value, dim))
    return None


def _number(value: torch.Tensor | int) -> float:
    """The number in an input: an int, such as logits_to_keep, as it is; a float from its tensor."""
    return value.item() if isinstance(value, torch.Tensor) else value


def _only_output(output: fx.Node) -> fx.Node:
    """The node of the logits, a graph's only output.

    Raises:
        CaptureError: the graph has other outputs too.
    """
    (results,) = args_of(output)
    if isinstance(results, tuple | list) and len(results) == 1:
        return results[0]
    raise CaptureError(
        f"the graph gives {len(results)} values, not logits alone: call the model with use_cache=False, "
        "without hidden states or attentions. If the model itself gives logits alone, Dynamo broke its "
        "forward into several graphs, which torch 2.11 does at nn.TransformerEncoder."
    )


def _children(traced: fx.GraphModule) -> dict[str, Any]:
    """The attributes that a graph's nodes name: modules of higher-order operators, constants."""
    names = {node.target for node in traced.graph.nodes if node.op in ("get_attr", "call_module")}
    return {name: _attribute(traced, name) for name in names}


def _attribute(module: Any, name: str) -> Any:
    for part in name.split("."):
        module = getattr(module, part)
    return module


def _is_size(node: fx.Node) -> bool:
    return isinstance(example_of(node), torch.SymInt)


def _is_argument(node: fx.Node) -> bool:
    """Whether an input is an argument of the call, neither part of the model nor a global such as math.pi."""
    return not _is_size(node) and is_argument(_source(node))


def _is_number(node: fx.Node) -> bool:
    """Whether an input is a Python float, which Dynamo passes as a float64 tensor [] and reads by item()."""
    example = example_of(node)
    is_scalar = example.dim() == 0 and example.dtype == torch.float64
    return is_scalar and all(user.target == "item" for user in node.users)


def _is_ids(node: fx.Node) -> bool:
    example = example_of(node)
    return example.dim() == 2 and example.dtype in (torch.int64, torch.int32)


def _varies(size: Any) -> bool:
    return isinstance(size, torch.SymInt)


def _source(node: fx.Node) -> str:
    return node.meta["source_name"]


def _argument_name(node: fx.Node) -> str:
    """A name for messages: position_ids for L['kwargs']['position_ids'], argument 1 for L['args'][1]."""
    name = last_step(_source(node))
    return f"argument {name}" if name.isdigit() else name
