"""A model and its tokenizer by name, for the command line."""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from ...errors import ConfigError, InputError
from ...waits import Wait

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(name: str, dtype: str, device: str) -> nn.Module:
    """The causal model in folder or hub repository `name`, in eval mode.

    Raises:
        ConfigError: no such dtype or device.
        InputError: nothing there that transformers loads.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
    try:
        place = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # an unknown device; a build without it
        raise ConfigError(f"device {device!r} can't be used: {str(error).splitlines()[0]}") from error
    try:
        with Wait(f"loading {name}"):
            model = AutoModelForCausalLM.from_pretrained(name, dtype=DTYPES[dtype])
    except (OSError, ValueError) as error:
        raise InputError(_nothing_there("causal model", name, error)) from error
    return model.eval().to(place)


def load_config(name: str) -> Any:
    """The configuration in folder or hub repository `name`.

    Raises:
        InputError: nothing there that transformers loads.
    """
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise InputError(_nothing_there("configuration", name, error)) from error


def load_tokenizer(name: str) -> Any:
    """The tokenizer in folder or hub repository `name`.

    Raises:
        InputError: nothing there that transformers loads.
    """
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError, KeyError) as error:
        raise InputError(_nothing_there("tokenizer", name, error)) from error


def _nothing_there(kind: str, name: str, error: Exception) -> str:
    first = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return f"can't load a {kind} from {name} ({first}): give a model's folder or its hub name."
