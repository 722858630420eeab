"""Copies of weights in fewer bits, exactly, for steps to read; longer calls go on reading the originals.

A step's time is the bytes of its weights. Many a float32 model was made from a checkpoint in half precision,
or from a file of quantised blocks, and its numbers are still no others than those.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace
from operator import attrgetter

import torch
from torch import fx

from ..errors import ConfigError
from ..kernels.coded_linear import encode
from .one_token import linears
from .regions import Outlined

Copy = tuple[torch.Tensor, ...]
"""Of weights below one another, [N, K]: the same in a narrower dtype, or their `Codes`."""

PREFIX = "qfpass_compact_"  # of the buffers that hold them
NARROWER = (torch.bfloat16, torch.float16)


@torch.inference_mode(False)
def compact_weights(outlined: Outlined) -> Outlined:
    """Give the linears of one input a copy of their weights, where there is one, in every layer alike.

    Raises:
        ConfigError: no weight has a copy.
    """
    parts = [part for part in (outlined.body, outlined.head) if part is not None]
    copied: list[torch.Tensor] = []
    for part in parts:
        copied += _compact_own(part)
        for name, calls in _calls(part.graph).items():
            copied += _compact_region(part, name, calls)
        part.recompile()
    if not copied:
        raise ConfigError(
            "compact_weights was asked for, but no linear's weights are float32 numbers that fewer bits hold "
            "exactly: leave it out."
        )
    copies = (buffer for part in parts for name, buffer in part.named_buffers() if name.startswith(PREFIX))
    return replace(outlined, copied=tuple(copied), copies=tuple(copies))


def copy_of(weights: Sequence[torch.Tensor]) -> Copy | None:
    """Of float32 weights [N, K] the smallest copy that holds exactly their numbers."""
    if any(weight.dtype != torch.float32 or weight.dim() != 2 for weight in weights):
        return None
    together = torch.cat([weight.detach() for weight in weights])
    if codes := encode(together):
        return codes
    narrower = (together.to(dtype) for dtype in NARROWER)
    return next(((copy,) for copy in narrower if torch.equal(copy.float(), together)), None)


def _calls(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    calls = defaultdict[str, list[fx.Node]](list)
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)].append(node)
    return calls


def _compact_own(module: fx.GraphModule) -> list[torch.Tensor]:
    """Linears whose weights the module holds itself; the weights that were copied."""
    copied: list[torch.Tensor] = []
    for node in _linears(module.graph, "get_attr"):
        weights = [_held(module, weight) for weight in node.args[1]]
        if copy := copy_of(weights):
            with module.graph.inserting_before(node):
                _read(node, [module.graph.get_attr(name) for name in _hold(module, copy)])
            copied += weights
    return copied


def _compact_region(root: fx.GraphModule, name: str, calls: Sequence[fx.Node]) -> list[torch.Tensor]:
    """Linears of a region that is called with each layer's weights; the weights that were copied."""
    region, copied = root.get_submodule(name), list[torch.Tensor]()
    if not isinstance(region, fx.GraphModule):
        return copied
    inputs = [node for node in region.graph.nodes if node.op == "placeholder"]
    for node in _linears(region.graph, "placeholder"):
        places = [inputs.index(weight) for weight in node.args[1]]
        operands = [[call.args[place] for place in places] for call in calls]
        if any(operand.op != "get_attr" for layer in operands for operand in layer):
            continue
        layers = {tuple(operand.target for operand in layer): layer for layer in operands}
        weights = {names: [_held(root, operand) for operand in layer] for names, layer in layers.items()}
        copies = {names: copy_of(layer) for names, layer in weights.items()}
        if None in copies.values() or len({_form(copy) for copy in copies.values()}) > 1:
            continue
        held = {names: _hold(root, copy) for names, copy in copies.items()}
        for call, layer in zip(calls, operands, strict=True):
            names = held[tuple(operand.target for operand in layer)]
            with root.graph.inserting_before(call):
                call.args = (*call.args, *map(root.graph.get_attr, names))
        _read(node, [_add_input(region.graph) for _ in next(iter(held.values()))])
        copied += [weight for layer in weights.values() for weight in layer]
    region.recompile()
    return copied


def _linears(graph: fx.Graph, kind: str) -> list[fx.Node]:
    """Those whose weights are all nodes of this kind."""
    found = [node for node in graph.nodes if node.target is linears]
    return [node for node in found if all(weight.op == kind for weight in node.args[1])]


def _held(module: fx.GraphModule, node: fx.Node) -> torch.Tensor:
    weight: torch.Tensor = attrgetter(str(node.target))(module)
    return weight


def _form(copy: Copy) -> Hashable:
    return tuple((tensor.dtype, tensor.shape) for tensor in copy)


def _hold(module: fx.GraphModule, copy: Copy) -> list[str]:
    """Keep the copy's tensors in the module; their names there."""
    first = sum(name.startswith(PREFIX) for name, _ in module.named_buffers(recurse=False))
    names = [f"{PREFIX}{first + i}" for i in range(len(copy))]
    for name, tensor in zip(names, copy, strict=True):
        module.register_buffer(name, tensor, persistent=False)
    return names


def _add_input(graph: fx.Graph) -> fx.Node:
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    number = sum(node.op == "placeholder" for node in graph.nodes)
    with graph.inserting_after(last):
        return graph.placeholder(f"input_{number}")


def _read(node: fx.Node, copy: Sequence[fx.Node]) -> None:
    node.args = (*node.args, tuple(copy))
