"""Operands by which steps of a few rows read quantised weights in their own bits, instead of widening them.

Codes of four bits that lie in a byte each are packed in pairs: a copy of half a byte a number. Calls with
more tokens dequantise the weights as the model does.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch
from torch import fx

from ..graph.nodes import args_of, attribute
from .group_codes import GroupCodes, group_codes
from .outline import Outlined
from .packed_copy import Held, PackedCopy, PackedForm, form_of_all
from .step_linears import linears

PREFIX = "qfpass_packed_"  # of the names of buffers that hold copies

Known = dict[Hashable, PackedCopy]
"""The copies by the tensors that they are of, so that all graphs of a model read the same ones."""


@torch.inference_mode(False)
@torch.no_grad()
def pack_weights(outlined: Outlined, known: Known) -> Outlined:
    """`outlined` with operands for each call of `linears` whose weights are all dequantised by groups.

    The layers of one kind get them only if the loops take the weights of all of them.
    """
    packed = list[PackedCopy]()
    for part in (outlined.body, outlined.head):
        if part is None:
            continue
        packed += _pack(part, part, [], known)
        for name, calls in _calls_by_module(part.graph).items():
            region = part.get_submodule(name)
            if isinstance(region, fx.GraphModule):
                packed += _pack(part, region, calls, known)
        part.recompile()
    return replace(outlined, packed=tuple({id(copy): copy for copy in packed}.values()))


def _calls_by_module(graph: fx.Graph) -> dict[str, list[fx.Node]]:
    calls = defaultdict[str, list[fx.Node]](list)
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)].append(node)
    return calls


def _pack(
    root: fx.GraphModule, module: fx.GraphModule, calls: Sequence[fx.Node], known: Known
) -> list[PackedCopy]:
    """Give the products in `module`, which is `root` or what these calls in it call, their operands.

    Returns the copies of all layers.
    """
    made = list[PackedCopy]()
    for node in [node for node in module.graph.nodes if node.target is linears]:
        found = [group_codes(weight) for weight in args_of(node)[1]]
        weights = [codes for codes in found if codes is not None]
        layers = [_held_of(root, module, calls, codes) for codes in weights]
        forms = [form for held in layers if held and (form := form_of_all(held)) is not None]
        if len(forms) < len(found):
            continue
        copies = [_copies_of(*each, known) for each in zip(layers, forms, strict=True)]
        operands = [_operands(root, module, calls, *each) for each in zip(weights, copies, strict=True)]
        node.args = (*args_of(node), operands)
        made += [copy for weight in copies for copy in weight]
    module.recompile()
    return made


def _held_of(
    root: fx.GraphModule, module: fx.GraphModule, calls: Sequence[fx.Node], weight: GroupCodes
) -> list[Held]:
    """The tensors that `weight` in `module` is made of, in each layer; [] if root doesn't hold them."""
    layers = [weight]
    if module is not root:
        inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        given = [dict(zip(inputs, args_of(call), strict=True)) for call in calls]
        layers = [weight.renamed(layer) for layer in given]
    if any(node.op != "get_attr" for layer in layers for node in layer.nodes):
        return []
    return [
        Held(attribute(root, codes), attribute(root, scales), attribute(root, zeros) if zeros else None)
        for codes, scales, zeros in layers
    ]


def _copies_of(layers: Sequence[Held], form: PackedForm, known: Known) -> list[PackedCopy]:
    """A copy of this form for each layer."""
    copies = list[PackedCopy]()
    for held in layers:
        key = (form, *map(id, held))
        if key not in known:
            known[key] = PackedCopy(held, form)
        copies.append(known[key])
    return copies


def _operands(
    root: fx.GraphModule,
    module: fx.GraphModule,
    calls: Sequence[fx.Node],
    weight: GroupCodes,
    copies: Sequence[PackedCopy],
) -> tuple[fx.Node | None, ...]:
    """The nodes in `module` of a weight's operands, of which there is a copy for each layer."""
    nodes = list[fx.Node | None]()
    for own, *tensors in zip(weight, *(copy.operands for copy in copies), strict=True):
        held = [copy.held[len(nodes)] for copy in copies]
        if tensors[0] is None:
            nodes.append(None)
        elif all(tensor is source for tensor, source in zip(tensors, held, strict=True)):
            nodes.append(own)
        else:
            nodes.append(_passed(root, module, calls, tensors))
    return tuple(nodes)


def _passed(
    root: fx.GraphModule, module: fx.GraphModule, calls: Sequence[fx.Node], tensors: Sequence[torch.Tensor]
) -> fx.Node:
    """A new node in `module` of a tensor in each layer, which `root` holds from now on."""
    first = next(iter(module.graph.nodes))
    if module is root:
        with root.graph.inserting_before(first):
            return root.graph.get_attr(_registered(root, tensors[0]))
    for call, tensor in zip(calls, tensors, strict=True):
        with root.graph.inserting_before(call):
            call.args = (*args_of(call), root.graph.get_attr(_registered(root, tensor)))
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    with module.graph.inserting_after(inputs[-1]):
        return module.graph.placeholder(f"input_{len(inputs)}")


def _registered(root: fx.GraphModule, tensor: torch.Tensor) -> str:
    """The name of a new buffer of the root that is this tensor."""
    number = sum(
        name.startswith(PREFIX) for name, _ in root.named_buffers(recurse=False, remove_duplicate=False)
    )
    name = f"{PREFIX}{number}"
    root.register_buffer(name, tensor, persistent=False)
    return name
