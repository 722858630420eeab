"""Attach: a copy of the model's object, of a subclass of its class, that runs the compiled decoder."""

import copy
from typing import Any

import torch
from torch import nn

from ..errors import InputError
from ..upstream.module_object import require_moves_in_one_place, twin_object
from .changes import Changes
from .decoder import Decoder
from .model import CompiledDecoder, CompiledPlainModel
from .returned import Returned


def attach(
    model: nn.Module, decoder: Decoder, changes: Changes, returned: Returned | None
) -> CompiledDecoder:
    """A model that shares `model`'s parameters and runs `decoder`; `model` itself is not changed.

    `returned` is of a model that isn't transformers'. What is set on either afterwards, hooks, settings or
    attributes, is its own; `changes` follow what is done to `model`'s parts.
    """
    require_moves_in_one_place()
    if returned is None:
        return _attach_transformers(model, decoder, changes)
    kind = _outside_dynamo(CompiledPlainModel, CompiledPlainModel.__name__)
    return kind(model, decoder, changes, returned)


def _attach_transformers(model: Any, decoder: Decoder, changes: Changes) -> CompiledDecoder:
    from ..upstream.generate import require_generation_steps
    from .generation import CompiledGeneration

    require_generation_steps()
    compiled: Any = twin_object(model)
    # Of the original's name, by which transformers' pipelines know what a model can do.
    compiled.__class__ = _outside_dynamo(CompiledGeneration, type(model).__name__, type(model))
    compiled.__dict__ |= {
        "config": copy.deepcopy(model.config),
        "generation_config": copy.deepcopy(model.generation_config),
        "qfpass_decoder": decoder,
        "qfpass_original": model,
        "qfpass_changes": changes,
    }
    backbone = getattr(model, model.base_model_prefix, model)
    if backbone is not model and isinstance(backbone, nn.Module):
        setattr(compiled, model.base_model_prefix, _uncalled(backbone, type(model).__name__))
    return compiled  # type: ignore[no-any-return]


def _outside_dynamo(kind: type, name: str, *bases: type) -> Any:
    """A class whose forward a torch.compile around it calls and doesn't trace: its graphs are compiled."""
    forward = torch.compiler.disable(kind.forward)  # type: ignore[attr-defined]
    return type(name, (kind, *bases), {"__module__": __name__, "forward": forward})


def _uncalled(backbone: nn.Module, name: str) -> nn.Module:
    """The backbone as a compiled model's part: its parameters are there, and it refuses to run unbounded."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise InputError(
            f"the compiled {name} runs as a whole: call it, not a part of it. The original, whose parts know "
            "no session, is its attribute qfpass_original."
        )

    kind = type(backbone)
    twin = twin_object(backbone)
    twin.__class__ = type(kind.__name__, (kind,), {"__module__": __name__, "forward": forward})
    return twin
