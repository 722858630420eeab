"""Snapshots of what a model's modules hold, to find out later what has changed."""

import copy
from typing import Any

from torch import nn

from ..upstream.modules import UNREAD, attributes_of

_IGNORED = {"training"}  # a compiled decoder is in eval mode, whatever the mode of its original
_OF_THE_OBJECT = {"forward", "generation_config"}  # like hooks, only calls of the original itself use these


class Snapshot:
    """A copy of what every module of a model holds, and of its config, at the time of construction."""

    def __init__(self, model: nn.Module) -> None:
        held = {path: attributes_of(module) for path, module in model.named_modules()}
        if hasattr(getattr(model, "config", None), "__dict__"):
            held["config"] = vars(model.config)
        self._paths, self._now = list(held), list(held.values())
        self._then = [_copied(values) for values in self._now]

    def is_current(self) -> bool:
        """Whether nothing has been set since.

        Every step asks, so values that are the same objects aren't looked into.
        """
        try:
            return self._now == self._then
        except Exception:  # comparing tensors, or objects of any kind, may raise anything
            return False

    def differences(self) -> list[str]:
        """The paths of what has been set since, sorted, without what no forward in eval mode reads."""
        found = list[str]()
        for path, now, then in zip(self._paths, self._now, self._then, strict=True):
            for name in now.keys() | then.keys():
                if _is_followed(path, name) and not _same(now.get(name), then.get(name)):
                    found += (f"{path}.{inner}".lstrip(".") for inner in _names(name, now, then))
        return sorted(found)


def _is_followed(path: str, name: str) -> bool:
    is_of_the_object = not path and (name in _OF_THE_OBJECT or "hooks" in name or name.endswith("call_impl"))
    return name not in _IGNORED and not is_of_the_object


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    """The same values, with shallow copies of the dictionaries, lists and sets that a forward may read."""
    return {
        name: copy.copy(value) if isinstance(value, (dict, list, set)) and name not in UNREAD else value
        for name, value in values.items()
    }


def _same(now: Any, then: Any) -> bool:
    try:
        return now is then or bool(now == then)
    except Exception:  # as in `is_current`
        return False


def _names(name: str, now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """The names to report for a changed attribute: its own, or the differing keys of one such as _buffers."""
    before, after = then.get(name), now.get(name)
    if not (name.startswith("_") and isinstance(before, dict) and isinstance(after, dict)):
        return [name]
    inner = (key for key in before.keys() | after.keys() if before.get(key) is not after.get(key))
    return [str(key) if isinstance(key, str) else name for key in inner] or [name]
