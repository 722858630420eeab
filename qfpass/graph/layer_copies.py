"""Layers that are traced once: where another does the same, a call stands for it in the graph until its nodes
are copied there."""

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import fx, nn

from ..upstream.fake_tensors import has_sizes_of_values
from ..upstream.operators import written_arguments
from .alike import forwards_replaced, weights_by_name
from .held import held, hold
from .inplace import gives_views
from .leaves import flatten, unflatten


class NotAlikeError(Exception):
    """A layer's nodes can't be another's: the message says why."""


@torch.library.custom_op("qfpass::layer_copy", mutates_args=())
def layer_copy(
    hidden: torch.Tensor, before: torch.Tensor, gave: torch.Tensor, template: str, layer: str
) -> torch.Tensor:
    """What `layer` makes of `hidden`, as `template` made `gave` of `before`; all else they read is alike."""
    raise NotAlikeError(f"{layer} is a copy of {template} only in a graph that is being captured")


@layer_copy.register_fake
def _fake(
    hidden: torch.Tensor, before: torch.Tensor, gave: torch.Tensor, template: str, layer: str
) -> torch.Tensor:
    return torch.empty_like(hidden)


class Call(NamedTuple):
    """A layer's operands and outputs, as leaves and their structure."""

    operands: list[Any]
    form: Any
    outputs: list[Any]
    outputs_form: Any


@contextmanager
def traced_once(model: nn.Module, alike: Mapping[str, str]) -> Iterator[None]:
    """Of layers that are `alike`, by path, only the first is traced."""
    calls = dict[str, Call]()

    def standing_in(path: str, forward: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            operands, form = flatten((args, kwargs))
            template = calls.get(alike.get(path, ""))
            hidden = _hidden(template, operands, form) if template else None
            if template and hidden:
                out = layer_copy(*hidden, alike[path], path)
                outputs = [out if isinstance(x, torch.Tensor) else x for x in template.outputs]
                return unflatten(outputs, template.outputs_form)
            out = forward(*args, **kwargs)
            calls[path] = Call(operands, form, *flatten(out))
            return out

        return call

    layers = {path: model.get_submodule(path) for path in {*alike, *alike.values()}}
    with forwards_replaced(layers, standing_in):
        yield


def _hidden(template: Call, operands: Sequence[Any], form: Any) -> tuple[Any, ...] | None:
    """The one operand that isn't the template's, the template's, and what that gave: three of one form."""
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
    """A layer's nodes in order.

    Attributes:
        hidden: the node that they read as hidden value.
        output: the one that they give.
        named: tensors that they read by a name, for which every copy has one of its own.
    """

    nodes: list[fx.Node]
    hidden: fx.Node
    output: fx.Node
    named: list[fx.Node]


def write_out(module: fx.GraphModule, model: nn.Module) -> None:
    """Put a copy of its template's nodes in every such call's place, in a graph of `model` without no-ops.

    Raises:
        NotAlikeError: a template reads, changes or gives other than it should, or a call is out of reach.
    """
    templates = dict[tuple[Any, ...], Template]()
    for call in list(module.graph.nodes):
        if _is_call(call):
            _, before, gave, path, _ = call.args
            if (path, before) not in templates:
                templates[path, before] = _template(module.graph, model, path, before, gave)
            call.replace_all_uses_with(_copied(module, model, templates[path, before], call))
            module.graph.erase_node(call)
    for part in module.modules():
        if isinstance(part, fx.GraphModule) and any(_is_call(node) for node in part.graph.nodes):
            raise NotAlikeError("a layer is called in a graph of its own")


def _is_call(node: fx.Node) -> bool:
    return node.target is torch.ops.qfpass.layer_copy.default


def _template(graph: fx.Graph, model: nn.Module, path: str, hidden: fx.Node, gave: fx.Node) -> Template:
    nodes = [node for node in graph.nodes if _is_within(path, node) and not _is_size(node)]
    own = set(nodes)
    outputs = [node for node in nodes if _is_read_by_others(node, own)]
    if outputs != [gave]:
        raise NotAlikeError(f"{path} gives {', '.join(map(str, outputs)) or 'nothing'}, not {gave} alone")
    if hidden in own or not own.intersection(hidden.users):
        raise NotAlikeError(f"{path} doesn't read {hidden}")
    for node in nodes:
        if has_sizes_of_values(node.meta.get("val")):
            raise NotAlikeError(f"{path} has sizes that depend on values: {node}")
        if not own.issuperset(_memory_of(written, own) for written in _written_by(node)):
            raise NotAlikeError(f"{path} changes what it is given: {node}")
    return Template(nodes, hidden, gave, _named(model, path, nodes))


def _written_by(node: fx.Node) -> Iterator[fx.Node]:
    """The operands that it changes in place."""
    for place, name in written_arguments(node.target):
        given = node.args[place] if place < len(node.args) else node.kwargs.get(name)
        if isinstance(given, fx.Node):
            yield given


def _memory_of(node: fx.Node, own: Container[fx.Node]) -> fx.Node:
    """The node that a value may be a view of, as far as `own` goes."""
    while node in own and gives_views(node):
        node = node.all_input_nodes[0]
    return node


def _named(model: nn.Module, path: str, nodes: Sequence[fx.Node]) -> list[fx.Node]:
    """Weights below `path` that have no other name, and numbers of which the layer's code makes tensors."""
    operands = {operand for node in nodes for operand in node.all_input_nodes if operand.op == "get_attr"}
    below = [node for node in operands if _tail(path, str(node.target)) is not None]
    weights = weights_by_name(model)
    for node in below:
        if node.target not in weights and held(model, str(node.target)) is not None:
            raise NotAlikeError(f"{path} reads {node.target}, which is neither parameter nor buffer")
    names = Counter(map(id, weights.values()))
    return [node for node in below if names.get(id(weights.get(str(node.target))), 1) == 1]


def _is_read_by_others(node: fx.Node, own: Container[fx.Node]) -> bool:
    """Sizes aside, and the operands by which a call tells of its template."""
    readers = [user for user in node.users if user not in own and not _is_size(user)]
    return any(not _is_call(user) or user.args[0] is node for user in readers)


def _is_within(path: str, node: fx.Node) -> bool:
    """Whether a layer or a module in it made the node."""
    return any(
        _tail(path, place) is not None for place, _ in (node.meta.get("nn_module_stack") or {}).values()
    )


def _tail(path: str, place: str) -> str | None:
    """What follows `path` in a place below it."""
    is_below = place == path or place.startswith(f"{path}.")
    return place.removeprefix(path) if is_below else None


def _is_size(node: fx.Node) -> bool:
    """A number, the same in all layers."""
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool))


def _copied(module: fx.GraphModule, model: nn.Module, template: Template, call: fx.Node) -> fx.Node:
    """The layer's output, made by copies of the template's nodes before the call."""
    hidden, _, _, path, layer = call.args
    copies = {template.hidden: hidden}
    with module.graph.inserting_before(call):
        for node in template.named:
            copies[node] = _own(module, model, node, str(node.target).replace(path, layer, 1))
        for node in template.nodes:
            copy = copies[node] = module.graph.node_copy(node, lambda read: copies.get(read, read))
            copy.meta["nn_module_stack"] = _moved(node.meta["nn_module_stack"], path, layer)
    output = copies[template.output]
    assert isinstance(output, fx.Node)
    return output


def _own(module: fx.GraphModule, model: nn.Module, like: fx.Node, target: str) -> fx.Node:
    """A layer's own weight, or a name of its own for the same numbers."""
    if held(module, target) is None:
        if held(model, str(like.target)) is not None:
            raise NotAlikeError(f"there is no {target}")
        hold(module, target, held(module, str(like.target)))
    node = module.graph.get_attr(target)
    node.meta = dict(like.meta)
    return node


def _moved(stack: Mapping[str, tuple[str, Any]], before: str, layer: str) -> dict[str, tuple[str, Any]]:
    """A module stack with the paths of another layer."""
    moved = dict[str, tuple[str, Any]]()
    for key, (place, kind) in stack.items():
        tail = _tail(before, place)
        now = place if tail is None else f"{layer}{tail}"
        moved[key.replace(place, now)] = (now, kind)
    return moved
