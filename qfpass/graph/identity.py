"""What a model computes, in one hash, and which of its layers compute the same.

Told by the operators that run when it reads what `capture` lets it read, and a text longer than its context,
on tensors without numbers.
"""

import hashlib
import logging
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.func import functional_call

from .. import sources
from ..upstream.entry import describe
from ..upstream.fake_tensors import Fakes, fakes
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
from .capture import Logits, example, place
from .layer_copies import traced_once
from .record import Record, form_of
from .tracing import as_traced

log = logging.getLogger(__name__)


OnSkip = Callable[[str], None]


class Text(NamedTuple):
    """Ids and positions [B, S], and what a model does with them.

    Attributes:
        lines: one for each operator that runs, and one for each tensor that is new.
        layers: by path in `Logits`, which lines are a layer's; none if they weren't noted.
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


def identity(
    model: nn.Module,
    batch: int | None,
    context_length: int,
    layers: bool = True,
    lean: bool = True,
    on_skip: OnSkip = log.debug,
) -> Identity | None:
    """Digits that two models share only if they run the same operators on the same operands,
    weights by name and constants by value, both for the example's sizes and for a text that is longer than
    `context_length` tokens.

    So it follows every change of a model's code, settings and modules that a trace of the example would, and
    sizes that the example is too short for. Versions are part of it. A model that goes through a set has
    several, one for each order. None for one that trains, doesn't run on tensors without numbers, calls
    operators of graphs, or reads large tensors that aren't its own: `on_skip` is told why.

    `layers` are noted for `alike_layers`. What nobody reads is left out if `lean`.
    """
    if model.training:
        on_skip("its calls leave something behind: call model.eval()")
        return None
    without_numbers = fakes()
    if without_numbers is None:
        on_skip("fake tensors aren't available")
        return None
    try:
        device = place(model)[0]
        short = example(device, batch)
        ids = torch.zeros(batch or len(short[0]) + 1, context_length + 1, dtype=torch.long, device=device)
        long = ids, torch.arange(ids.shape[1], device=device).expand_as(ids).contiguous()
        with as_traced(model, lean):
            logits_of(call_decoder(model, *short))  # what it makes once, it makes of numbers
            reader = _Reader(Logits(model, lean), without_numbers, layers)
            texts = reader.read(short), reader.read(long)
            lines = [*_versions(), *_forms(reader.model), *(line for text in texts for line in text.lines)]
    except Exception as error:  # whatever the model's own code raises
        on_skip(f"what it computes can't be told without its numbers: {describe(error)}")
        return None
    return Identity(hashlib.sha256("\n".join(lines).encode()).hexdigest(), texts)


def alike_layers(
    model: nn.Module, known: Identity, lean: bool = True, on_skip: OnSkip = log.debug
) -> dict[str, str]:
    """Layers by path in `Logits`, each with the first that does the same with its own weights.

    None of a model that notices when they don't run: all else must be the same without them. `on_skip` is
    told why there are none.
    """
    alike, without_numbers = first_alike([text.steps for text in known.texts]), fakes()
    if not alike or without_numbers is None:
        on_skip("no layer does the same as another")
        return {}
    try:
        with as_traced(model, lean):
            reader = _Reader(Logits(model, lean), without_numbers)
            without = [reader.read(text.given, alike) for text in known.texts]
        unnoticed = all(a.beside(alike) == b.beside(alike) for a, b in zip(known.texts, without, strict=True))
    except Exception as error:  # whatever the model's own code raises
        on_skip(f"it fails when layers don't run: {describe(error)}")
        return {}
    if not unnoticed:
        on_skip("it does something else when layers don't run")
        return {}
    return alike


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
        yield f"{name}: {number} {form_of(tensor, tensor.device)} {tensor.requires_grad}"


class _Reader:
    """Reads texts with a model on tensors without numbers; what one leaves in modules is gone at the next."""

    def __init__(self, model: nn.Module, fakes: Fakes, layers: bool = True) -> None:
        self.model, self._fakes = model, fakes
        self._layers = layers_of(model) if layers else {}
        own = weights_by_name(model)
        made = {id(tensor): fakes.fake(tensor) for tensor in own.values()}
        self._weights = {name: made[id(tensor)] for name, tensor in own.items()}
        names = Counter(map(id, self._weights.values()))
        self._named = [
            (fake, Weight(name, form_of(fake, fakes.device_of(fake))))
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
        ids, positions = map(self._fakes.fake, given)
        record = Record([ids, positions, *self._weights.values()], self._fakes)
        named = {record.number(fake): weight for fake, weight in self._named}
        try:
            with (
                traced_once(self.model, alike), layer_lines_noted(self._layers, record) as layers,
                self._fakes.watched(record.run),
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
