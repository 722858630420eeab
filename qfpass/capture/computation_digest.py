"""One hash of what a model computes, and which of its layers compute the same.

Both come from a log of the operators that run when the model reads, on fake tensors, the example of a trace
and a text longer than its context.
"""

import hashlib
import logging
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import nn
from torch.func import functional_call

from .. import code_digest
from ..graph.captured import device_and_dtype, example_inputs
from ..graph.tracing import trace_settings
from ..upstream.entry import describe
from ..upstream.fake_tensors import Fakes, fakes
from .decoder_call import LogitsWrapper, logits_of, run_decoder
from .equal_layers import (
    LayerLines,
    LayerSteps,
    Weight,
    first_equal_layers,
    layer_lines_noted,
    layer_steps,
    layers_of,
    lines_outside,
    parts_by_name,
    weights_by_name,
)  # fmt: skip
from .layer_copies import layer_copies_stand_in
from .left_behind import HeldByModules, put_back
from .operator_log import OperatorLog, form_of

log = logging.getLogger(__name__)


OnSkip = Callable[[str], None]


class LoggedText(NamedTuple):
    """A text, and the log of the operators that a model runs on it.

    Attributes:
        given: ids and positions, each [B, S] int64.
        lines: one for each operator that runs, and one for each tensor that is new.
        layers: each layer's part of the lines, by path in `LogitsWrapper`; empty if it wasn't asked for.
        weights: the weights that have exactly one name, by their number in the log.
    """

    given: tuple[torch.Tensor, torch.Tensor]
    lines: list[str]
    layers: dict[str, LayerLines]
    weights: dict[int, Weight]

    @property
    def steps(self) -> dict[str, LayerSteps]:
        """What each layer does, by path, in a form in which layers can be compared."""
        return layer_steps(self.lines, self.layers, self.weights)

    def beside(self, paths: Collection[str]) -> list[str]:
        """The lines of what runs outside the layers at `paths`."""
        return lines_outside(self.lines, [self.layers[path] for path in paths])


class ComputationDigest(NamedTuple):
    """A model's digest, 64 hexadecimal digits, and the texts whose logs it is made of."""

    digest: str
    texts: tuple[LoggedText, ...]


def digest_computation(
    model: nn.Module,
    batch: int | None,
    context_length: int,
    layers: bool = True,
    on_skip: OnSkip = log.debug,
) -> ComputationDigest | None:
    """The digest of what a model computes; two models share it only if they run the same operators.

    Operators are logged with their operands (weights by name, constants by value) for the example of a trace
    and for a text longer than `context_length` tokens. So the digest changes with any code, setting or module
    that a trace of either text depends on, and with the versions of Python, torch, transformers and qfpass. A
    model that iterates over a set may have several, one for each order.

    Returns None, and calls `on_skip` with the reason, for a model in training mode, or one that doesn't run
    on fake tensors, calls higher-order operators, or reads large tensors that aren't its own.

    Args:
        batch: the number of rows that the model is made for, or None for any number.
        layers: whether to log which operators are a layer's, as `repeated_layers` needs.
    """
    if model.training:
        on_skip("its calls leave something behind: call model.eval()")
        return None
    without_numbers = fakes()
    if without_numbers is None:
        on_skip("fake tensors aren't available")
        return None
    try:
        device = device_and_dtype(model)[0]
        short = example_inputs(device, batch)
        ids = torch.zeros(batch or len(short[0]) + 1, context_length + 1, dtype=torch.long, device=device)
        long = ids, torch.arange(ids.shape[1], device=device).expand_as(ids).contiguous()
        with trace_settings(model), put_back(model):
            logits_of(run_decoder(model, *short))  # so that what a model makes once and keeps isn't fake
            reader = _Reader(LogitsWrapper(model), without_numbers, layers)
            texts = reader.read(short), reader.read(long)
            lines = [*_versions(), *_forms(reader.model), *(line for text in texts for line in text.lines)]
    except Exception as error:  # the model's own code may raise anything
        on_skip(f"what it computes can't be told without its numbers: {describe(error)}")
        return None
    return ComputationDigest(hashlib.sha256("\n".join(lines).encode()).hexdigest(), texts)


def repeated_layers(
    model: nn.Module, known: ComputationDigest, on_skip: OnSkip = log.debug
) -> dict[str, str]:
    """For layers that repeat an earlier one with other weights: path -> path of the first such layer.

    Paths are those in `LogitsWrapper`. The result is empty, and `on_skip` is called with the reason, if no
    layer repeats another, or if the rest of the model runs other operators when repeating layers don't run.
    """
    repeats, without_numbers = first_equal_layers([text.steps for text in known.texts]), fakes()
    if not repeats or without_numbers is None:
        on_skip("no layer does the same as another")
        return {}
    try:
        with trace_settings(model):
            reader = _Reader(LogitsWrapper(model), without_numbers)
            without = [reader.read(text.given, repeats) for text in known.texts]
        logs = zip(known.texts, without, strict=True)
        unnoticed = all(a.beside(repeats) == b.beside(repeats) for a, b in logs)
    except Exception as error:  # the model's own code may raise anything
        on_skip(f"it fails when layers don't run: {describe(error)}")
        return {}
    if not unnoticed:
        on_skip("it does something else when layers don't run")
        return {}
    return repeats


def _versions() -> Iterator[str]:
    transformers = getattr(sys.modules.get("transformers"), "__version__", None)
    yield f"python {sys.version} torch {torch.__version__} transformers {transformers}"
    yield f"qfpass {code_digest.DIGEST}"


def _forms(model: nn.Module) -> Iterator[str]:
    """A line for each module and each weight; the same number in two lines means the same object."""
    numbers = dict[int, int]()
    for path, module in model.named_modules(remove_duplicate=False):
        number = numbers.setdefault(id(module), len(numbers))
        yield f"{path}: {number} {type(module).__module__}.{type(module).__qualname__}"
    for name, tensor in weights_by_name(model).items():
        number = numbers.setdefault(id(tensor), len(numbers))
        yield f"{name}: {number} {form_of(tensor, tensor.device)} {tensor.requires_grad}"


class _Reader:
    """Runs a model on fake tensors and logs its operators; undoes what a run leaves in modules."""

    def __init__(self, model: LogitsWrapper, fakes: Fakes, layers: bool = True) -> None:
        self.model, self._fakes = model, fakes
        self._layers = layers_of(model) if layers else {}
        own = weights_by_name(model)
        made = {id(tensor): fakes.fake(tensor) for tensor in own.values()}
        self._weights = {name: made[id(tensor)] for name, tensor in own.items()}
        self._known = self._weights | parts_by_name(self._weights)
        names = Counter(map(id, self._known.values()))
        self._named = [
            (fake, Weight(name, form_of(fake, fakes.device_of(fake))))
            for name, fake in self._known.items()
            if names[id(fake)] == 1
        ]
        self._held = HeldByModules(model)

    def read(
        self, given: tuple[torch.Tensor, torch.Tensor], repeats: Mapping[str, str] = MappingProxyType({})
    ) -> LoggedText:
        """The log of a call on `given` ids and positions; layers in `repeats` are `layer_copy` calls."""
        ids, positions = map(self._fakes.fake, given)
        operators = OperatorLog([ids, positions, *self._known.values()], self._fakes)
        named = {operators.number(fake): weight for fake, weight in self._named}
        try:
            with (
                layer_copies_stand_in(self.model, repeats),
                layer_lines_noted(self._layers, operators) as layers,
                self._fakes.watched(operators.run),
            ):  # fmt: skip
                weights = dict(self._weights)  # functional_call writes what a forward replaces into it
                logits = functional_call(self.model, weights, (ids, positions))
                operators.lines.append(f"leaves behind {sorted(self.model.left_behind)}")
        finally:
            self._held.put_back()
        operators.lines.append(f"gives {operators.told(logits)}")
        return LoggedText(given, operators.lines, layers, named)
