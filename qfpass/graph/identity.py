"""What a model computes, in one hash, and which of its layers compute the same.

Told by the operators that run when it reads what `capture` lets it read, and a text longer than its context,
on tensors without numbers.
"""

import hashlib
import logging
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
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


class Text(NamedTuple):
    """Ids and positions [B, S], and what a model does with them.

    Attributes:
        lines: one for each operator that runs, and one for each tensor that is new.
        layers: by path in `Logits`, which lines are a layer's.
        weights: by number, those of one name.
    """

    given: tuple[torch.Tensor, torch.Tensor]
    lines: list[str]
    layers: dict[str, LayerLines]
    weights: dict[int, Weight]

    @property
    def steps(self) -> dict[str, LayerSteps]:
        """Layers by path, in words by which they can be compared."""
        return layer_steps(self.lines, self.layers, self.weights)

    def beside(self, paths: Collection[str]) -> list[str]:
        """What runs outside these layers."""
        return lines_beside(self.lines, [self.layers[path] for path in paths])


class Identity(NamedTuple):
    """64 hexadecimal digits, and the texts that they tell of."""

    digits: str
    texts: tuple[Text, ...]


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
            reader = _Reader(Logits(model))
            texts = reader.read(short), reader.read(long)
            lines = [*_versions(), *_forms(reader.model), *(line for text in texts for line in text.lines)]
    except Exception as error:  # whatever the model's own code raises
        log.debug("no identity of %s: %s: %s", type(model).__name__, type(error).__name__, error)
        return None
    return Identity(hashlib.sha256("\n".join(lines).encode()).hexdigest(), texts)


def alike_layers(model: nn.Module, known: Identity) -> dict[str, str]:
    """Layers by path in `Logits`, each with the first that does the same with its own weights.

    None of a model that notices when they don't run: all else must be the same without them.
    """
    alike = first_alike([text.steps for text in known.texts])
    if not alike:
        return {}
    try:
        with as_traced(model):
            reader = _Reader(Logits(model))
            without = [reader.read(text.given, alike) for text in known.texts]
        unnoticed = all(a.beside(alike) == b.beside(alike) for a, b in zip(known.texts, without, strict=True))
    except Exception as error:  # whatever the model's own code raises
        log.debug("no layers are alike: %s: %s", type(error).__name__, error)
        return {}
    return alike if unnoticed else {}


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


class _Reader:
    """Reads texts with a model on tensors without numbers; what one leaves in modules is gone at the next."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._mode = FakeTensorMode(allow_non_fake_inputs=True)
        own = weights_by_name(model)
        made = {id(tensor): self._mode.from_tensor(tensor) for tensor in own.values()}
        self._weights = {name: made[id(tensor)] for name, tensor in own.items()}
        names = Counter(map(id, self._weights.values()))
        self._named = [
            (fake, Weight(name, form_of(fake)))
            for name, fake in self._weights.items()
            if names[id(fake)] == 1
        ]
        self._containers = dict[int, tuple[Any, Any]]()
        for module in model.modules():
            _copy_containers(vars(module), self._containers)

    def read(
        self, given: tuple[torch.Tensor, torch.Tensor], alike: Mapping[str, str] = MappingProxyType({})
    ) -> Text:
        """A call in which layers that are `alike` don't run, but for the first."""
        ids, positions = map(self._mode.from_tensor, given)
        record = Record([ids, positions, *self._weights.values()])
        named = {record.number(fake): weight for fake, weight in self._named}
        try:
            with (
                traced_once(self.model, alike), layer_lines_noted(layers_of(self.model), record) as layers,
                _compiling_state_context(), self._mode, record,
            ):  # fmt: skip
                weights = dict(self._weights)  # what a forward replaces is written there
                logits = functional_call(self.model, weights, (ids, positions))
        finally:
            self._restore_attributes()
        record.lines.append(f"gives {record.told(logits)}")
        return Text(given, record.lines, layers, named)

    def _restore_attributes(self) -> None:
        """What a forward kept in its modules and their containers is gone: it holds no numbers."""
        for container, before in self._containers.values():
            container.clear()
            (container.extend if isinstance(container, list) else container.update)(before)


def _copy_containers(value: Any, found: dict[int, tuple[Any, Any]]) -> None:
    """Find a value's dictionaries, lists and sets, each with what it holds."""
    if not isinstance(value, (dict, list, set)) or id(value) in found:
        return
    found[id(value)] = value, (dict if isinstance(value, dict) else list)(value)
    for each in value.values() if isinstance(value, dict) else value:
        _copy_containers(each, found)
