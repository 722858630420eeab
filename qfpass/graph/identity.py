"""What a model computes, in one hash: the operators that run when it reads what `capture` lets it read, and a
text as long as its context, on tensors without numbers."""

import hashlib
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._export.utils import _compiling_state_context
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.func import functional_call
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

from .. import sources
from .alike import LayerSteps, Weight, alike, layer_lines_noted, layer_steps, layers_of
from .call import call_decoder, logits_of
from .capture import ROOT, Logits, as_traced, example, place

log = logging.getLogger(__name__)
_LARGEST_CONSTANT = 1 << 20  # numbers of a tensor that isn't the model's


class Identity(NamedTuple):
    """64 hexadecimal digits, and by a layer's path the first that does the same with its own weights."""

    digits: str
    alike: dict[str, str]


def identity(model: nn.Module, batch: int | None, context_length: int) -> Identity | None:
    """Digits that two models share only if they run the same operators on the same operands,
    weights by name and constants by value, both for the example's sizes and for a text that is longer than
    `context_length` tokens.

    So it follows every change of a model's code, settings and modules that a trace of the example would, and
    sizes that the example is too short for. Versions are part of it. A model that goes through a set has
    several, one for each order. None for one that doesn't run on tensors without numbers, calls operators of
    graphs, or reads large tensors that aren't its own.
    """
    try:
        device = place(model)[0]
        short = example(device, batch)
        ids = torch.zeros(batch or len(short[0]) + 1, context_length + 1, dtype=torch.long, device=device)
        long = ids, torch.arange(ids.shape[1], device=device).expand_as(ids).contiguous()
        with as_traced(model):
            logits_of(call_decoder(model, *short))  # what it makes once, it makes of numbers
            texts = _operators(model, *short), _operators(model, *long)
            lines = [*_versions(), *_forms(model), *texts[0].lines, *texts[1].lines]
    except Exception as error:  # whatever the model's own code raises
        log.debug("no identity of %s: %s: %s", type(model).__name__, type(error).__name__, error)
        return None
    digits = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return Identity(digits, alike([text.steps for text in texts]))


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
    for name, tensor in _weights(model).items():
        yield f"{name}: {numbers.setdefault(id(tensor), len(numbers))} {_form(tensor)} {tensor.requires_grad}"


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    parameters = model.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(model.named_buffers(remove_duplicate=False))}


def _form(tensor: torch.Tensor) -> str:
    return f"{type(tensor).__name__} {tuple(tensor.shape)} {tensor.stride()} {tensor.dtype} {tensor.device}"


class _Text(NamedTuple):
    """A line for each operator that runs and for each tensor that is new, and what single layers do."""

    lines: list[str]
    steps: dict[str, LayerSteps]


def _operators(model: nn.Module, ids: torch.Tensor, positions: torch.Tensor) -> _Text:
    """Of a call with ids and positions [B, S]."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made = dict[int, torch.Tensor]()  # one for each weight, however many names it has
    weights = {name: _made_fake(tensor, mode, made) for name, tensor in _weights(model).items()}
    ids, positions = mode.from_tensor(ids), mode.from_tensor(positions)
    record = _Record([ids, positions, *weights.values()])
    names = Counter(map(id, weights.values()))
    own = {
        record.number(tensor): Weight(name, _form(tensor))
        for name, tensor in weights.items()
        if names[id(tensor)] == 1
    }
    with (
        layer_lines_noted(layers_of(model), record) as layers,
        _attributes_restored(model), _compiling_state_context(), mode, record,
    ):  # fmt: skip
        given = {f"{ROOT}{name}": weight for name, weight in weights.items()}
        logits = functional_call(Logits(model), given, (ids, positions))
    record.lines.append(f"gives {record.told(logits)}")
    return _Text(record.lines, layer_steps(record.lines, layers, own))


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
    """Find a value's dictionaries, lists and sets, each with a copy of itself."""
    if not isinstance(value, (dict, list, set)) or id(value) in found:
        return
    found[id(value)] = value, copy(value)
    for each in value.values() if isinstance(value, dict) else value:
        _copy_containers(each, found)


class _Record(TorchDispatchMode):
    """Writes down operators, tensors by their numbers.

    Attributes:
        lines: one an operator.
        kept: every tensor seen, so that none takes the place of another.
    """

    def __init__(self, known: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.lines, self.kept = list[str](), list[torch.Tensor]()
        self._numbers = dict[int, int]()
        for tensor in known:
            self.number(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        operands = f"{self.told(args)} {self.told(kwargs or {})}"
        out = func(*args, **(kwargs or {}))
        self.lines.append(f"{func} {operands} -> {self.told(out)}")
        return out

    def told(self, value: Any) -> str:
        """Operands or outputs in words."""
        if isinstance(value, torch.Tensor):
            return f"%{self.number(value)}"
        if isinstance(value, (tuple, list)):
            return f"{type(value).__name__}({', '.join(map(self.told, value))})"
        if isinstance(value, dict):
            return f"{{{', '.join(f'{key!r}: {self.told(each)}' for key, each in value.items())}}}"
        return repr(value)

    def number(self, tensor: torch.Tensor) -> int:
        """A tensor's own, the next one if it is new."""
        number = self._numbers.setdefault(id(tensor), len(self._numbers))
        if number == len(self.kept):
            self.kept.append(tensor)
            self.lines.append(f"{number} is {_form(tensor)} {_numbers_of(tensor)}")
        return number


def _numbers_of(tensor: torch.Tensor) -> str:
    """The contents of a tensor that isn't fake, such as one that a forward makes from numbers."""
    if isinstance(tensor, FakeTensor):
        return ""
    if tensor.numel() > _LARGEST_CONSTANT:
        raise ValueError(f"a constant of {tensor.numel()} numbers")
    with no_dispatch():
        return hashlib.sha256(repr(tensor.tolist()).encode()).hexdigest()
