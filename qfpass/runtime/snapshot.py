"""What the modules of a model hold at one time, to be compared with what they hold later."""

import copy
from typing import Any

from torch import nn

from ..upstream.modules import own_values

_IGNORED = {"training"}  # a compiled decoder is one in eval mode, whatever its original does now
_OF_THE_OBJECT = {"forward", "generation_config"}  # and hooks: what the original alone is called with


class Snapshot:
    """What every module of a model holds, and its config."""

    def __init__(self, model: nn.Module) -> None:
        held = {path: own_values(module) for path, module in model.named_modules()}
        if hasattr(getattr(model, "config", None), "__dict__"):
            held["config"] = vars(model.config)
        self._paths, self._now = list(held), list(held.values())
        self._then = [_copied(values) for values in self._now]

    def is_current(self) -> bool:
        """Some 0.2 microseconds a module: values that are the same objects aren't looked at."""
        try:
            return self._now == self._then
        except Exception:  # what comparing other tensors, or objects of any kind, raises
            return False

    def differences(self) -> list[str]:
        """What was set, by path, but for what no forward in eval mode reads."""
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
    """The same values, and copies of what can be changed in place."""
    return {
        name: copy.copy(value) if isinstance(value, (dict, list, set)) else value
        for name, value in values.items()
    }


def _same(now: Any, then: Any) -> bool:
    try:
        return now is then or bool(now == then)
    except Exception:  # as above
        return False


def _names(name: str, now: dict[str, Any], then: dict[str, Any]) -> list[str]:
    """Of parameters and parts their own names, not that of the dictionary that holds them."""
    before, after = then.get(name), now.get(name)
    if not (name.startswith("_") and isinstance(before, dict) and isinstance(after, dict)):
        return [name]
    inner = (key for key in before.keys() | after.keys() if before.get(key) is not after.get(key))
    return [str(key) if isinstance(key, str) else name for key in inner] or [name]
