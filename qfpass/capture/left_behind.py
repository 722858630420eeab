"""What a call leaves behind in a model's modules: attributes that it set, and put back as they were."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..upstream.modules import attributes_of, version_counters

_SYMBOLIC = (torch.SymBool, torch.SymInt, torch.SymFloat)


class HeldByModules:
    """What a model's modules hold now: attributes, and what is in their dictionaries, lists and sets.

    The values of tensors aren't copied. Where one has been written in place, attributes aren't put back
    either, since a flag may tell of it: that weights have been rescaled, say.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = dict(model.named_modules())
        self._tensors = [*model.parameters(), *model.buffers()]
        self._versions = version_counters(self._tensors)
        self._before = dict[int, tuple[Any, Any]]()
        for module in self._modules.values():
            _copy_containers(attributes_of(module), self._before)
        if hasattr(getattr(model, "config", None), "__dict__"):
            _copy_containers(vars(model.config), self._before)

    def put_back(self) -> None:
        """Put every attribute back to the object that it was, unless a tensor has been written in place."""
        if version_counters(self._tensors) != self._versions:
            return
        for container, before in self._before.values():
            if not _same_objects(container, before):
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(before)

    def changed_numbers(self) -> list[str]:
        """The paths of the modules' attributes that are other numbers or flags now, also symbolic ones."""
        found = list[str]()
        for path, module in self._modules.items():
            now = attributes_of(module)
            _, before = self._before[id(now)]
            found += (
                f"{path}.{name}".lstrip(".") for name in now if _is_other_number(now[name], before.get(name))
            )
        return found


@contextmanager
def put_back(model: nn.Module) -> Iterator[HeldByModules]:
    """A context after which the modules of `model` hold what they hold now, whatever calls leave behind."""
    held = HeldByModules(model)
    try:
        yield held
    finally:
        held.put_back()


def _same_objects(container: Any, before: Any) -> bool:
    """Whether a container holds exactly the objects that it held, found without comparing them."""
    if len(container) != len(before):
        return False
    if isinstance(container, dict):
        return all(name in before and container[name] is before[name] for name in container)
    return {*map(id, container)} == {*map(id, before)}


def _is_other_number(now: Any, before: Any) -> bool:
    # A symbolic number is never compared, since the trace would note that as an assumption.
    return isinstance(now, _SYMBOLIC) or (isinstance(now, (bool, int, float)) and now != before)


def _copy_containers(value: Any, found: dict[int, tuple[Any, Any]]) -> None:
    """Add each dictionary, list and set within `value` to `found`, by id, with a copy of its content."""
    if not isinstance(value, (dict, list, set)) or id(value) in found:
        return
    found[id(value)] = value, (dict if isinstance(value, dict) else list)(value)
    for each in value.values() if isinstance(value, dict) else value:
        _copy_containers(each, found)
