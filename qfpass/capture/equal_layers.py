"""Find layers that compute the same with different weights, by comparing logs of their operators."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any, NamedTuple

import torch
from torch import nn

from ..upstream.modules import has_hooks, parts_of
from .leaves import flatten
from .operator_log import OperatorLog

Forward = Callable[..., Any]
# A tensor's number in a line of an operator log: %3 where it is used, "3 is ..." where it is new.
_NUMBER = re.compile(r"%(\d+)|^(\d+)(?= is )")


class LayerLines(NamedTuple):
    """What a layer's call added to an operator log.

    Attributes:
        lines: the indices of its lines.
        numbers: the numbers of the tensors that are new in it.
        output: the number of its only output tensor; None if it has more or none.
    """

    lines: range
    numbers: range
    output: int | None


class Weight(NamedTuple):
    """A weight's only name, and its form: type, sizes, strides, dtype and device in words."""

    name: str
    form: str


class LayerSteps(NamedTuple):
    """What a layer does, in a form that layers with different weights may share.

    Attributes:
        told: its lines, in which tensors are named by their role in the layer instead of by number.
        outside: the numbers of the tensors that it reads from outside, other than its weights.
    """

    told: str
    outside: tuple[int, ...]


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of a model by path: modules in its outermost ModuleLists that have no hooks.

    Hooks run outside forward, so they would be missing from a layer's log. The result is empty for a model
    that holds one module under two paths, since torch.export's paths then depend on how the module is called.
    """
    places = [id(module) for _, module in model.named_modules(remove_duplicate=False)]
    if len(places) > len(set(places)):
        return {}
    found, lists = dict[str, nn.Module](), list[str]()
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and not any(path.startswith(f"{outer}.") for outer in lists):
            lists.append(path)
            found |= {f"{path}.{name}": layer for name, layer in module.named_children() if _is_plain(layer)}
    return found


def weights_by_name(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a model by name, a shared one under each of its names."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(model.named_buffers(remove_duplicate=False))}


def parts_by_name(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parts of those weights that are quantised, by the weight's name and the part's."""
    return {
        f"{name}.{part}": tensor
        for name, weight in weights.items()
        for part, tensor in parts_of(weight).items()
    }


def _is_plain(layer: nn.Module) -> bool:
    return not has_hooks(layer) and not isinstance(layer, torch.jit.ScriptModule)


@contextmanager
def forwards_replaced(
    layers: Mapping[str, nn.Module], make: Callable[[str, Forward], Forward]
) -> Iterator[None]:
    """Inside, the forward of each layer is `make(path, forward)`, with the signature of the original."""
    owned = dict[str, Any]()
    try:
        for path, layer in layers.items():
            own = vars(layer).get("forward")
            layer.forward = wraps(layer.forward)(make(path, layer.forward))
            owned[path] = own
        yield
    finally:
        for path, own in owned.items():
            if own is None:
                del layers[path].forward
            else:
                layers[path].forward = own


@contextmanager
def layer_lines_noted(
    layers: Mapping[str, nn.Module], record: OperatorLog
) -> Iterator[dict[str, LayerLines]]:
    """Inside, the dictionary that is yielded collects, by path, what each layer's call adds to `record`.

    Layers that were called more than once are removed from it at the end.
    """
    found, calls = dict[str, LayerLines](), Counter[str]()

    def noting(path: str, forward: Forward) -> Forward:
        def call(*args: Any, **kwargs: Any) -> Any:
            before = len(record.lines), len(record.kept)
            out = forward(*args, **kwargs)
            outputs = [leaf for leaf in flatten(out)[0] if isinstance(leaf, torch.Tensor)]
            output = record.number(outputs[0]) if len(outputs) == 1 else None
            lines, numbers = map(range, before, (len(record.lines), len(record.kept)))
            found[path] = LayerLines(lines, numbers, output)
            calls[path] += 1
            return out

        return call

    with forwards_replaced(layers, noting):
        yield found
    for path, times in calls.items():
        if times > 1:
            del found[path]


def layer_steps(
    lines: Sequence[str], layers: Mapping[str, LayerLines], weights: Mapping[int, Weight]
) -> dict[str, LayerSteps]:
    """What each layer does, by path, for layers of which nothing but one output is read outside.

    `weights` are those that have exactly one name, by their number in the log.
    """
    closed = {path: layer for path, layer in layers.items() if layer.output in layer.numbers}
    for path in _read_elsewhere(lines, closed):
        del closed[path]
    return {path: _steps(path, lines, layer, weights) for path, layer in closed.items()}


def _numbers(line: str) -> Iterator[int]:
    return (int(match[1] or match[2]) for match in _NUMBER.finditer(line))


def _read_elsewhere(lines: Sequence[str], layers: Mapping[str, LayerLines]) -> set[str]:
    """The layers of which a tensor other than the output is read outside."""
    owner = {n: path for path, layer in layers.items() for n in layer.numbers if n != layer.output}
    found = set[str]()
    for i, line in enumerate(lines):
        for number in _numbers(line):
            path = owner.get(number)
            if path is not None and i not in layers[path].lines:
                found.add(path)
    return found


def _steps(path: str, lines: Sequence[str], layer: LayerLines, weights: Mapping[int, Weight]) -> LayerSteps:
    outside = dict[int, int]()

    def name(match: re.Match[str]) -> str:
        number = int(match[1] or match[2])
        if number in layer.numbers:
            return f"%own {number - layer.numbers.start}"
        weight = weights.get(number)
        if weight and weight.name.startswith(f"{path}."):
            return f"%weight {weight.name.removeprefix(path)} {weight.form}"
        return f"%outside {outside.setdefault(number, len(outside))}"

    assert layer.output is not None
    told = "\n".join(_NUMBER.sub(name, lines[i]) for i in layer.lines)
    output = layer.output - layer.numbers.start
    return LayerSteps(f"{told}\ngives {output}", tuple(outside))


def lines_outside(lines: Sequence[str], layers: Collection[LayerLines]) -> list[str]:
    """The lines outside these layers, with tensors numbered anew in order of appearance, from %0."""
    left_out, numbers = {i for layer in layers for i in layer.lines}, dict[str, int]()

    def name(match: re.Match[str]) -> str:
        return f"%{numbers.setdefault(match[1] or match[2], len(numbers))}"

    return [_NUMBER.sub(name, line) for i, line in enumerate(lines) if i not in left_out]


def first_equal_layers(texts: Sequence[Mapping[str, LayerSteps]]) -> dict[str, str]:
    """For layers that repeat an earlier one: path -> path of the first such layer.

    A layer repeats another if both do the same in every text and read the same tensors from outside but for
    one, which is the same operand in every text.
    """
    found, first = dict[str, str](), defaultdict[tuple[str, ...], list[str]](list)
    for path in (path for path in texts[0] if all(path in text for text in texts)):
        do_so = first[tuple(text[path].told for text in texts)]
        template = next((f for f in do_so if _one_differs([(text[f], text[path]) for text in texts])), None)
        if template is None:
            do_so.append(path)
        else:
            found[path] = template
    return found


def _one_differs(pairs: Sequence[tuple[LayerSteps, LayerSteps]]) -> bool:
    """Whether each pair differs in exactly one tensor from outside, the same operand in all pairs."""
    places = {
        tuple(i for i, (a, b) in enumerate(zip(x.outside, y.outside, strict=True)) if a != b)
        for x, y in pairs
    }
    return len(places) == 1 and len(next(iter(places))) == 1
