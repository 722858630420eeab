"""A call runs the one adapter that is active; a choice of adapters for its rows is refused."""

from collections.abc import Mapping
from typing import Any

from ..errors import InputError


def refuse_adapter_names(named: Mapping[str, Any]) -> None:
    """Raise InputError if a call's keyword arguments name an adapter for each row, as PEFT's do."""
    if named.get("adapter_names") is not None:
        raise InputError(
            "adapter_names= gives each row an adapter of its own, but a compiled decoder runs one for all: "
            "call set_adapter(name) on the original before the call, and keep a session or a pool for each "
            "adapter."
        )
