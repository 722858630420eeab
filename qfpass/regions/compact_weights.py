"""Exact copies of weights in fewer bits, which steps of a few rows read instead of the originals.

A step's time is proportional to the bytes of its weights. Many float32 models come from a checkpoint in half
precision or from a file of quantised blocks, so fewer bits hold their numbers exactly. Calls with more tokens
read the originals.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import fx

from ..errors import ConfigError
from ..graph.nodes import args_of, attribute
from ..kernels.cpu.coded_linear.op import encode
from .outline import Outlined
from .step_linears import linears

Copy = tuple[torch.Tensor, ...]
"""A copy of weights concatenated to [N, K]: one tensor of a narrower dtype, or the three of `Codes`."""

PREFIX = "qfpass_compact_"  # of the names of buffers that hold copies
NARROWER = (torch.bfloat16, torch.float16)


@torch.inference_mode(False)
def compact_weights(outlined: Outlined) -> Outlined:
    """`outlined` with exact copies of the weights of each call of `linears`, where there are such copies.

    The layers of one kind get copies only if all of them have one of the same form.

    Raises:
        ConfigError: no weight has a copy.
    """
    parts = [part for part in (outlined.body, outlined.head) if part is not None]
    copied: list[torch.Tensor] = []
    for part in parts:
        copied += _compact_own(part)
        for name, calls in _calls_by_module(part.graph).items():
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
    """The smallest copy that holds exactly the numbers of float32 weights [N, K]; None if there is none."""
    if any(weight.dtype != torch.float32 or weight.dim() != 2 for weight in weights):
        return None
    together = torch.cat([weight.detach() for weight in weights])
    if codes := encode(together):
        return codes
    narrower = (together.to(dtype) for dtype in NARROWER)
    return next(((copy,) for copy in narrower if torch.equal(copy.float(), together)), None)


def _calls_by_module(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    calls = defaultdict[str, list[fx.Node]](list)
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)].append(node)
    return calls


def _compact_own(module: fx.GraphModule) -> list[torch.Tensor]:
    """Add copies for linears whose weights the module holds itself; returns the weights that were copied."""
    copied: list[torch.Tensor] = []
    for node in _linears(module.graph, "get_attr"):
        weights = [attribute(module, weight) for weight in args_of(node)[1]]
        if copy := copy_of(weights):
            with module.graph.inserting_before(node):
                _pass_copy(node, [module.graph.get_attr(name) for name in _register(module, copy)])
            copied += weights
    return copied


def _compact_region(root: fx.GraphModule, name: str, calls: Sequence[fx.Node]) -> list[torch.Tensor]:
    """Add copies for linears of a region that `calls` give each layer's weights; returns what was copied."""
    region, copied = root.get_submodule(name), list[torch.Tensor]()
    if not isinstance(region, fx.GraphModule):
        return copied
    inputs = [node for node in region.graph.nodes if node.op == "placeholder"]
    for node in _linears(region.graph, "placeholder"):
        places = [inputs.index(weight) for weight in args_of(node)[1]]
        operands = [[args_of(call)[place] for place in places] for call in calls]
        if any(operand.op != "get_attr" for layer in operands for operand in layer):
            continue
        layers = {tuple(operand.target for operand in layer): layer for layer in operands}
        weights = {names: [attribute(root, operand) for operand in layer] for names, layer in layers.items()}
        made = ((names, copy_of(layer)) for names, layer in weights.items())
        copies = {names: copy for names, copy in made if copy is not None}
        if len(copies) < len(weights) or len({_shapes_and_dtypes(copy) for copy in copies.values()}) > 1:
            continue
        held = {names: _register(root, copy) for names, copy in copies.items()}
        for call, layer in zip(calls, operands, strict=True):
            names = held[tuple(operand.target for operand in layer)]
            with root.graph.inserting_before(call):
                call.args = (*args_of(call), *map(root.graph.get_attr, names))
        _pass_copy(node, [_add_input(region.graph) for _ in next(iter(held.values()))])
        copied += [weight for layer in weights.values() for weight in layer]
    region.recompile()
    return copied


def _linears(graph: fx.Graph, kind: str) -> list[fx.Node]:
    """The calls of `linears` whose weights are all nodes of this kind, get_attr or placeholder."""
    found = [node for node in graph.nodes if node.target is linears]
    return [node for node in found if all(weight.op == kind for weight in args_of(node)[1])]


def _shapes_and_dtypes(copy: Copy) -> Hashable:
    return tuple((tensor.dtype, tensor.shape) for tensor in copy)


def _register(module: fx.GraphModule, copy: Copy) -> list[str]:
    """Register the copy's tensors as buffers of the module; returns their names."""
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


def _pass_copy(node: fx.Node, copy: Sequence[fx.Node]) -> None:
    node.kwargs = {"compact": tuple(copy)}
