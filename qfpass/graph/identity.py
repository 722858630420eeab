"""What a model computes, in one hash, and which of its layers compute the same.

Told by the operators that run when it reads what `capture` lets it read, and a text longer than its context,
on tensors without numbers.
"""

import hashlib
import logging
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._export.utils import _compiling_state_context
from torch._subclasses import FakeTensorMode
from torch.func import functional_call

from .. import sources
from .alike import (
    LayerLines,
    LayerSteps,
    Weight,
    first_alike,
    layer_lines_noted,
    layer_steps,
    layers_of,
    lines_beside,
    weights_by_name,
)  # fmt: skip
from .call import call_decoder, logits_of
from .capture import Logits, as_traced, example, place
from .layer_copies import traced_once
from .record import Record, form_of

log = logging.getLogger(__name__)
_NONE = dict[str, str]()


class Text(NamedTuple):
    """Ids and positions [B, S], and what a model does with them.

    Attributes:
        lines: one for each operator that runs, and one for each tensor that is new.
        layers: by path in `Logits`, which lines are a layer's.
        steps: the same in words by which layers can be compared.
    """

    given: tuple[torch.Tensor, torch.Tensor]
    lines: list[str]
    layers: dict[str, LayerLines]
    steps: dict[str, LayerSteps]

    def beside(self, paths: Collection[str]) -> list[str]:
        """What runs outside these layers."""
        return lines_beside(self.lines, [self.layers[path] for path in paths])


class Identity(NamedTuple):
    """64 hexadecimal digits, and layers by path in `Logits`, each with the first that does the same."""

    digits: str
    alike: dict[str, str]


def identity(model: nn.Module, batch: int | None, context_length: int) -> Identity | None:
    """Digits that two models share only if they run the same operators on the same operands,
    weights by name and constants by value, both for the example's sizes and for a text that is longer than
    `context_length` tokens.

    So it follows every change of a model's code, settings and modules that a trace of the example would, and
    sizes that the example is too short for. Versions are part of it. A model that goes through a set has
    several, one for each order. None for one that trains, doesn't run on tensors without numbers, calls
    operators of graphs, or reads large tensors that aren't its own.
    """
    if model.training:  # its calls leave something behind
        return None
    try:
        device = place(model)[0]
        short = example(device, batch)
        ids = torch.zeros(batch or len(short[0]) + 1, context_length + 1, dtype=torch.long, device=device)
        long = ids, torch.arange(ids.shape[1], device=device).expand_as(ids).contiguous()
        with as_traced(model):
            logits_of(call_decoder(model, *short))  # what it makes once, it makes of numbers
            read = _text(Logits(model), long)
            alike = _alike_layers(Logits(model), read)
            lines = [
                *_versions(),
                *_forms(Logits(model)),
                *read.lines,
                *_text(Logits(model), short, alike).lines,
            ]
    except Exception as error:  # whatever the model's own code raises
        log.debug("no identity of %s: %s: %s", type(model).__name__, type(error).__name__, error)
        return None
    return Identity(hashlib.sha256("\n".join(lines).encode()).hexdigest(), alike)


def _alike_layers(model: nn.Module, read: Text) -> dict[str, str]:
    """Layers that do the same with their own weights, of a model that doesn't notice when they don't run."""
    alike = first_alike([read.steps])
    try:
        without = _text(model, read.given, alike)
    except Exception as error:  # whatever the model's own code raises
        log.debug("no layers are alike: %s: %s", type(error).__name__, error)
        return {}
    return alike if read.beside(alike) == without.beside(alike) else {}


def _versions() -> Iterator[str]:
    transformers = getattr(sys.modules.get("transformers"), "__version__", None)
    yield f"python {sys.version} torch {torch.__version__} transformers {transformers}"
    yield f"qfpass {sources.DIGEST}"


def _forms(model: nn.Module) -> Iterator[str]:
    """Every module and every weight, and which of them are one."""
    numbers = dict[int, int]()
    for path, module in model.named_modules(remove_duplicate=False):
        number = numbers.setdefault(id(module), len(numbers))
        yield f"{path}: {number} {type(module).__module__}.{type(module).__qualname__}"
    for name, tensor in weights_by_name(model).items():
        number = numbers.setdefault(id(tensor), len(numbers))
        yield f"{name}: {number} {form_of(tensor)} {tensor.requires_grad}"


def _text(
    model: nn.Module, given: tuple[torch.Tensor, torch.Tensor], alike: Mapping[str, str] = _NONE
) -> Text:
    """Of a call in which layers that are `alike` don't run, but for the first."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made = dict[int, torch.Tensor]()  # one for each weight, however many names it has
    weights = {name: _made_fake(tensor, mode, made) for name, tensor in weights_by_name(model).items()}
    ids, positions = map(mode.from_tensor, given)
    record = Record([ids, positions, *weights.values()])
    names = Counter(map(id, weights.values()))
    own = {
        record.number(tensor): Weight(name, form_of(tensor))
        for name, tensor in weights.items()
        if names[id(tensor)] == 1
    }
    with (
        traced_once(model, alike), layer_lines_noted(layers_of(model), record) as layers,
        _attributes_restored(model), _compiling_state_context(), mode, record,
    ):  # fmt: skip
        logits = functional_call(model, weights, (ids, positions))
    record.lines.append(f"gives {record.told(logits)}")
    return Text(given, record.lines, layers, layer_steps(record.lines, layers, own))


def _made_fake(tensor: torch.Tensor, mode: FakeTensorMode, made: dict[int, torch.Tensor]) -> torch.Tensor:
    if id(tensor) not in made:
        made[id(tensor)] = mode.from_tensor(tensor)
    return made[id(tensor)]


@contextmanager
def _attributes_restored(model: nn.Module) -> Iterator[None]:
    """What a forward keeps in its modules and their containers is gone afterwards: it holds no numbers."""
    containers = dict[int, tuple[Any, Any]]()
    for module in model.modules():
        _copy_containers(vars(module), containers)
    try:
        yield
    finally:
        for container, before in containers.values():
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(before)


def _copy_containers(value: Any, found: dict[int, tuple[Any, Any]]) -> None:
    """Find a value's dictionaries, lists and sets, each with what it holds."""
    if not isinstance(value, (dict, list, set)) or id(value) in found:
        return
    found[id(value)] = value, (dict if isinstance(value, dict) else list)(value)
    for each in value.values() if isinstance(value, dict) else value:
        _copy_containers(each, found)
