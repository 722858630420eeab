"""Attach: a copy of the model's object, of a subclass of its class, that runs the compiled decoder."""

import copy

from torch import nn
from transformers import PreTrainedModel

from .decoder import Decoder
from .generation import CompiledGeneration
from .model import CompiledDecoder, CompiledPlainModel


def attach(model: nn.Module, decoder: Decoder, gives_tensor: bool) -> CompiledDecoder:
    """A model that shares `model`'s parameters and runs `decoder`; `model` itself is not changed."""
    if not isinstance(model, PreTrainedModel):
        return CompiledPlainModel(model, decoder, gives_tensor)
    original = type(model)
    bases = (CompiledGeneration, original)
    compiled = copy.copy(model)
    for name in ("_modules", "_parameters", "_buffers"):
        compiled.__dict__[name] = dict(model.__dict__[name])
    # Of the original's name, by which transformers' pipelines know what a model can do.
    compiled.__class__ = type(original.__name__, bases, {"__module__": __name__})
    compiled.__dict__["qfpass_decoder"] = decoder
    compiled.__dict__["qfpass_original"] = model
    return compiled  # type: ignore[return-value]
