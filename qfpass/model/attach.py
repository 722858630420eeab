"""Attach a compiled decoder to a copy of the model's object, whose class is a subclass of the model's."""

import copy
from typing import Any

import torch
from torch import nn

from ..capture.kinds import kind_of
from ..decoder.decoder import Decoder
from ..errors import InputError
from ..upstream.module_object import require_moves_in_one_place, shallow_copy
from .changes import DecoderVersions
from .compiled_decoder import CompiledDecoder, CompiledPlainModel
from .early_exit import EarlyExits
from .headless import BY_KIND
from .returned import MakeOutput


def attach(
    model: nn.Module,
    decoder: Decoder,
    changes: DecoderVersions,
    returned: MakeOutput | None,
    early_exits: EarlyExits | None = None,
) -> CompiledDecoder:
    """A model that shares `model`'s parameters and runs `decoder`; `model` itself is not changed.

    Hooks, settings and attributes that are set on one of them later don't affect the other.

    Args:
        changes: follows changes of `model`'s modules, such as another adapter.
        returned: makes the output of a model that isn't transformers'; None for a transformers model.
        early_exits: the model's first layers, where they can be compiled.
    """
    require_moves_in_one_place()
    if returned is None:
        return _attach_transformers(model, decoder, changes, early_exits or EarlyExits())
    kind = outside_dynamo(CompiledPlainModel, CompiledPlainModel.__name__)
    return kind(model, decoder, changes, returned)


def _attach_transformers(
    model: Any, decoder: Decoder, changes: DecoderVersions, early_exits: EarlyExits
) -> CompiledDecoder:
    compiled: Any = shallow_copy(model)
    # The class keeps the original's name: transformers' pipelines tell by it what a model can do.
    compiled.__class__ = outside_dynamo(_kind_for(model), type(model).__name__, type(model))
    if hasattr(model, "generation_config"):
        compiled.generation_config = copy.deepcopy(model.generation_config)
    compiled.__dict__ |= {
        "config": copy.deepcopy(model.config),
        "qfpass_decoder": decoder,
        "qfpass_original": model,
        "qfpass_changes": changes,
        "qfpass_early_exits": early_exits,
    }
    backbone = getattr(model, model.base_model_prefix, model)
    if backbone is not model and isinstance(backbone, nn.Module):
        setattr(compiled, model.base_model_prefix, _twin_that_refuses_calls(backbone, type(model).__name__))
    return compiled


def _kind_for(model: nn.Module) -> type[CompiledDecoder]:
    """The class that calls a transformers model's decoder and returns what the model does."""
    kind = kind_of(model)
    if kind in BY_KIND:
        return BY_KIND[kind]
    from ..upstream.generate import require_generation_steps
    from .generation import CompiledGeneration

    require_generation_steps()
    return CompiledGeneration


def outside_dynamo(kind: type, name: str, *bases: type) -> Any:
    """A subclass of `kind` and `bases` whose forward an outer torch.compile calls without tracing it.

    Its graphs are compiled already.
    """
    forward = torch.compiler.disable(kind.forward)  # type: ignore[attr-defined]
    return type(name, (kind, *bases), {"__module__": __name__, "forward": forward})


def _twin_that_refuses_calls(backbone: nn.Module, name: str) -> nn.Module:
    """A twin of the backbone with the same parameters that refuses calls, which would run it unbounded."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise InputError(
            f"the compiled {name} runs as a whole: call it, not a part of it. The original, whose parts know "
            "no session, is its attribute qfpass_original."
        )

    kind = type(backbone)
    twin = shallow_copy(backbone)
    twin.__class__ = type(kind.__name__, (kind,), {"__module__": __name__, "forward": forward})
    return twin
