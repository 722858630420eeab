"""Attach: a copy of the model's object, of a subclass of its class, that runs the compiled decoder."""

from torch import nn

from ..upstream.module_object import require_moves_in_one_place, twin_object
from .decoder import Decoder
from .model import CompiledDecoder, CompiledPlainModel


def attach(model: nn.Module, decoder: Decoder, gives_tensor: bool) -> CompiledDecoder:
    """A model that shares `model`'s parameters and runs `decoder`; `model` itself is not changed."""
    from transformers import PreTrainedModel  # takes seconds to import

    require_moves_in_one_place()
    if not isinstance(model, PreTrainedModel):
        return CompiledPlainModel(model, decoder, gives_tensor)
    from ..upstream.generate import require_generation_steps
    from .generation import CompiledGeneration

    require_generation_steps()
    original = type(model)
    compiled = twin_object(model)
    # Of the original's name, by which transformers' pipelines know what a model can do.
    bases = (CompiledGeneration, original)
    compiled.__class__ = type(original.__name__, bases, {"__module__": __name__})
    compiled.__dict__["qfpass_decoder"] = decoder
    compiled.__dict__["qfpass_original"] = model
    return compiled  # type: ignore[return-value]
