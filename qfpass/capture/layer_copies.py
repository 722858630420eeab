"""Trace equal layers once: the others are `layer_copy` calls, later replaced by copies of its nodes."""

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from ..graph.module_paths import get_by_path, set_by_path
from ..graph.nodes import args_of, gives_views
from ..upstream.fake_tensors import has_sizes_of_values
from ..upstream.operators import written_arguments
from .equal_layers import forwards_replaced, parts_by_name, weights_by_name
from .leaves import flatten, unflatten


class LayerCopyError(Exception):
    """A layer can't be written out as a copy of another; the message says why."""


@torch.library.custom_op("qfpass::layer_copy", mutates_args=())
def layer_copy(
    hidden: torch.Tensor, before: torch.Tensor, gave: torch.Tensor, template: str, layer: str
) -> torch.Tensor:
    """The output of `layer` for `hidden`, which computes as `template` computed `gave` from `before`.

    It stands for the layer in a trace and can't be run. All else that the two layers read is the same.
    """
    raise LayerCopyError(f"{layer} is a copy of {template} only in a graph that is being captured")


@layer_copy.register_fake
def _fake(
    hidden: torch.Tensor, before: torch.Tensor, gave: torch.Tensor, template: str, layer: str
) -> torch.Tensor:
    return torch.empty_like(hidden)


class LayerCall(NamedTuple):
    """One call of a layer: its operands and outputs as leaves, each with their structure (see `flatten`)."""

    operands: list[Any]
    form: Any
    outputs: list[Any]
    outputs_form: Any


@contextmanager
def layer_copies_stand_in(model: nn.Module, repeats: Mapping[str, str]) -> Iterator[None]:
    """Inside, layers in `repeats` (path -> path of the first such layer) are `layer_copy` calls.

    A layer whose operands don't fit such a call runs all the same.
    """
    calls = dict[str, LayerCall]()

    def standing_in(path: str, forward: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            operands, form = flatten((args, kwargs))
            template = calls.get(repeats.get(path, ""))
            hidden = _copy_operands(template, operands, form) if template else None
            if template and hidden:
                out = layer_copy(*hidden, repeats[path], path)
                outputs = [out if isinstance(x, torch.Tensor) else x for x in template.outputs]
                return unflatten(outputs, template.outputs_form)
            out = forward(*args, **kwargs)
            calls[path] = LayerCall(operands, form, *flatten(out))
            return out

        return call

    layers = {path: model.get_submodule(path) for path in {*repeats, *repeats.values()}}
    with forwards_replaced(layers, standing_in):
        yield


def _copy_operands(template: LayerCall, operands: Sequence[Any], form: Any) -> tuple[Any, ...] | None:
    """A `layer_copy` call's operands (hidden, before, gave), or None if the layer's `operands` don't fit.

    They fit if one of them, a tensor, differs from the template's, the template has one output tensor, and
    the three tensors have the same form.
    """
    if form != template.form:
        return None
    pairs = zip(template.operands, operands, strict=True)
    others = [(now, before) for before, now in pairs if not _same(before, now)]
    outputs = [leaf for leaf in template.outputs if isinstance(leaf, torch.Tensor)]
    only_tensors = all(isinstance(leaf, (torch.Tensor, type(None))) for leaf in template.outputs)
    if len(others) != 1 or len(outputs) != 1 or not only_tensors:
        return None
    tensors = (*others[0], *outputs)
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors) or len(set(map(_form, tensors))) > 1:
        return None
    return tensors


def _same(before: Any, now: Any) -> bool:
    plain = type(before) is type(now) and isinstance(now, (int, float, str))
    return before is now or (plain and before == now)


def _form(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype} {tensor.device} {tuple(tensor.shape)} {tensor.stride()}"


class Template(NamedTuple):
    """The nodes of a layer that is traced, to be copied for others.

    Attributes:
        nodes: in graph order.
        hidden: the node outside that they read as hidden states.
        output: the one of them that is read outside.
        named: the get_attr nodes that they read for which every copy has an attribute of its own.
    """

    nodes: list[fx.Node]
    hidden: fx.Node
    output: fx.Node
    named: list[fx.Node]


def expand_layer_copies(module: fx.GraphModule, model: nn.Module) -> None:
    """Replace each `layer_copy` call in the graph of `module` by copies of its template's nodes, in place.

    `module` is the trace of `model`, with no-ops already removed.

    Raises:
        NotAlikeError: a template doesn't read its hidden states, has other outputs than expected, changes
            what it is given, or has sizes that depend on values; a weight is missing; or a call is in a
            nested graph.
    """
    templates = dict[tuple[Any, ...], Template]()
    for call in list(module.graph.nodes):
        if _is_call(call):
            _, before, gave, path, _ = args_of(call)
            if (path, before) not in templates:
                templates[path, before] = _template(module.graph, model, path, before, gave)
            call.replace_all_uses_with(_copied(module, model, templates[path, before], call))
            module.graph.erase_node(call)
    for part in module.modules():
        if isinstance(part, fx.GraphModule) and any(_is_call(node) for node in part.graph.nodes):
            raise LayerCopyError("a layer is called in a graph of its own")


def _is_call(node: fx.Node) -> bool:
    return node.target is torch.ops.qfpass.layer_copy.default


def _template(graph: fx.Graph, model: nn.Module, path: str, hidden: fx.Node, gave: fx.Node) -> Template:
    """The nodes of the layer at `path`, checked to read `hidden` and to have the only output `gave`."""
    nodes = [node for node in graph.nodes if _is_within(path, node) and not _is_size(node)]
    own = set(nodes)
    outputs = [node for node in nodes if _is_read_by_others(node, own)]
    if outputs != [gave]:
        raise LayerCopyError(f"{path} gives {', '.join(map(str, outputs)) or 'nothing'}, not {gave} alone")
    if hidden in own or not own.intersection(hidden.users):
        raise LayerCopyError(f"{path} doesn't read {hidden}")
    for node in nodes:
        if has_sizes_of_values(node.meta.get("val")):
            raise LayerCopyError(f"{path} has sizes that depend on values: {node}")
        if not own.issuperset(_memory_of(written, own) for written in _written_by(node)):
            raise LayerCopyError(f"{path} changes what it is given: {node}")
    return Template(nodes, hidden, gave, _named(model, path, nodes))


def _written_by(node: fx.Node) -> Iterator[fx.Node]:
    """The operands that a node changes in place."""
    for place, name in written_arguments(node.target):
        given = args_of(node)[place] if place < len(args_of(node)) else node.kwargs.get(name)
        if isinstance(given, fx.Node):
            yield given


def _memory_of(node: fx.Node, own: Container[fx.Node]) -> fx.Node:
    """The node whose memory `node` may be a view of, followed back while nodes are in `own`."""
    while node in own and gives_views(node):
        node = node.all_input_nodes[0]
    return node


def _named(model: nn.Module, path: str, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """The get_attr nodes that every copy of the layer at `path` has for itself.

    They are the layer's weights that have no other name, and constants that its code makes.

    Raises:
        NotAlikeError: the layer reads an attribute of its own that is neither parameter nor buffer.
    """
    operands = {operand for node in nodes for operand in node.all_input_nodes if operand.op == "get_attr"}
    below = [node for node in operands if _tail(path, str(node.target)) is not None]
    weights = weights_by_name(model)
    weights |= parts_by_name(weights)
    for node in below:
        if node.target not in weights and get_by_path(model, str(node.target)) is not None:
            raise LayerCopyError(f"{path} reads {node.target}, which is neither parameter nor buffer")
    names = Counter(map(id, weights.values()))
    return [node for node in below if names.get(id(weights.get(str(node.target))), 1) == 1]


def _is_read_by_others(node: fx.Node, own: Container[fx.Node]) -> bool:
    """Whether a node outside `own` reads `node`, except for its size or as `before` or `gave` of a call."""
    readers = [user for user in node.users if user not in own and not _is_size(user)]
    return any(not _is_call(user) or args_of(user)[0] is node for user in readers)


def _is_within(path: str, node: fx.Node) -> bool:
    """Whether `node` was traced in the module at `path` or in one below it."""
    return any(
        _tail(path, place) is not None for place, _ in (node.meta.get("nn_module_stack") or {}).values()
    )


def _tail(path: str, place: str) -> str | None:
    """The rest of the module path `place` after `path`; None if it isn't at or below `path`."""
    is_below = place == path or place.startswith(f"{path}.")
    return place.removeprefix(path) if is_below else None


def _is_size(node: fx.Node) -> bool:
    """Whether a node holds a symbolic number, which is the same in all layers."""
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool))


def _copied(module: fx.GraphModule, model: nn.Module, template: Template, call: fx.Node) -> fx.Node:
    """Insert copies of the template's nodes before `call`, and return the copy of its output."""
    hidden, _, _, path, layer = args_of(call)
    copies = {template.hidden: hidden}
    with module.graph.inserting_before(call):
        for node in template.named:
            copies[node] = _own_attribute(module, model, node, str(node.target).replace(path, layer, 1))
        for node in template.nodes:
            copy = copies[node] = module.graph.node_copy(node, lambda read: copies.get(read, read))
            copy.meta["nn_module_stack"] = _moved_stack(node.meta["nn_module_stack"], path, layer)
    output = copies[template.output]
    assert isinstance(output, fx.Node)
    return output


def _own_attribute(module: fx.GraphModule, model: nn.Module, like: fx.Node, target: str) -> fx.Node:
    """A get_attr node for the attribute `target`, which a copied layer reads where its template reads `like`.

    If `target` is missing and `like` is a constant, `target` becomes the same tensor.

    Raises:
        NotAlikeError: `like` is a weight of the model, and there is no `target`.
    """
    if get_by_path(module, target) is None:
        if get_by_path(model, str(like.target)) is not None:
            raise LayerCopyError(f"there is no {target}")
        set_by_path(module, target, get_by_path(module, str(like.target)))
    node = module.graph.create_node("get_attr", target)  # get_attr() warns of a path through a tensor
    node.meta = dict(like.meta)
    return node


def _moved_stack(stack: Mapping[str, tuple[str, Any]], before: str, layer: str) -> dict[str, tuple[str, Any]]:
    """The module stack of a node, with paths below `before` moved below `layer`."""
    moved = dict[str, tuple[str, Any]]()
    for key, (place, kind) in stack.items():
        tail = _tail(before, place)
        now = place if tail is None else f"{layer}{tail}"
        moved[key.replace(place, now)] = (now, kind)
    return moved
