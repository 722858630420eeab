"""A compiled model and its tokenizer by name, for the commands that serve it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from ..errors import ConfigError
from ..load_exported import load
from ..packages.manifest import FILE
from ..pipeline import compile
from .evaluate.models import load_model, load_tokenizer

_UNITS = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


def load_compiled(
    name: str, tokenizer: str | None, *, dtype: str, device: str, given: Sequence[str] = (), **settings: Any
) -> tuple[Any, Any]:
    """A model compiled with `settings`, or an exported one as it was compiled, and its tokenizer.

    Args:
        name: a folder or a hub name; or a folder that `model.export` wrote.
        tokenizer: a folder or a hub name; None for the model's.
        given: the options that the user gave.

    Raises:
        ConfigError: an export without a tokenizer, or with an option that it has settled.
    """
    if (Path(name) / FILE).is_file():
        if settled := [option for option in given if option in {"dtype", "device", *settings}]:
            option = settled[0].replace("_", "-")
            raise ConfigError(
                f"{name} is an exported decoder, which was compiled with a {settled[0]} of its own: leave "
                f"--{option} out, or name the model itself."
            )
        if tokenizer is None:
            raise ConfigError(f"{name} is an exported decoder, without a tokenizer: name one by --tokenizer.")
        return load(name), load_tokenizer(tokenizer)
    words = load_tokenizer(tokenizer or name)
    return compile(load_model(name, dtype, device), **settings), words


def options_given(context: typer.Context) -> list[str]:
    """The names of the options that stand on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return [name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


def bytes_of(text: str) -> int:
    """The bytes that a text such as 4GiB, 500MB or 1000000 means.

    Raises:
        ConfigError: it means none.
    """
    unit = text.lstrip("0123456789.")
    try:
        return int(float(text[: len(text) - len(unit)]) * _UNITS[unit.strip().lower()])
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{text!r} is no number of bytes: write 4GiB, 500MB or 1000000.") from error
