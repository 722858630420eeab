"""Early exit: the first layers of a compiled model draft for it, as a compiled model of their own."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import nn

from ..config import Config
from ..decoder.decoder import Decoder
from ..errors import InputError
from ..upstream.module_object import shallow_copy

_INSTEAD = "Give a copy of the model with fewer layers as assistant_model."


class EarlyExits:
    """The compiled first layers of a model, made when they are asked for and kept.

    Args:
        model: the original; None if it can't be cut or compiled here.
        build: compiles a model as settings say.
    """

    def __init__(self, model: Any = None, build: Callable[[nn.Module, Config], Any] | None = None) -> None:
        self._model, self._build = model, build
        self._made = dict[int, tuple[Decoder, Any]]()

    def of(self, layers: Any, decoder: Decoder) -> Any:
        """The compiled model of the first `layers` layers, in stores and with filters like `decoder`'s.

        Raises:
            InputError: there are no such layers, or the model can't be cut.
            QFPassError: they can't be compiled.
        """
        if self._model is None or self._build is None or decoder.part is not None:
            raise InputError(
                "assistant_early_exit is not possible on exported models, on vision-language models and on "
                f"models that are split over processes. {_INSTEAD}"
            )
        made_for, made = self._made.get(layers, (None, None)) if type(layers) is int else (None, None)
        if made_for is not decoder:
            first = first_layers(self._model, layers, len(decoder.whole_layers))
            made = self._build(first, _settings(decoder, layers))
            self._made[layers] = decoder, made
        return made


def first_layers(model: Any, layers: Any, count: int) -> Any:
    """A model of the first of a transformers model's `count` layers; all its parts are the model's.

    Raises:
        InputError: there are no such layers, or it isn't known where the model's layers stand.
    """
    backbone = getattr(model, model.base_model_prefix, model)
    lists = [n for n, m in backbone.named_children() if isinstance(m, nn.ModuleList) and len(m) == count]
    if backbone is model or len(lists) != 1 or getattr(backbone.config, "num_hidden_layers", None) != count:
        raise InputError(
            f"assistant_early_exit is not possible on {type(model).__name__}, which has no list of layers "
            f"with one attention each. {_INSTEAD}"
        )
    if type(layers) is not int or not 0 < layers < count:
        raise InputError(
            f"assistant_early_exit must be a number of layers from 1 to {count - 1}, fewer than the model's "
            f"{count}, not {layers!r}."
        )
    twin, first, (name,) = shallow_copy(model), shallow_copy(backbone), lists
    setattr(first, name, getattr(backbone, name)[:layers])
    config = copy.deepcopy(backbone.config)
    config.num_hidden_layers = layers
    twin.config = first.config = config
    setattr(twin, model.base_model_prefix, first)
    return twin


def _settings(decoder: Decoder, layers: int) -> Config:
    """The settings of a decoder for its first layers."""
    config, filters = decoder.config, decoder.filters
    return replace(
        config,
        filters=None if filters is None else filters.of_first(layers),
        skip_layers=tuple(layer for layer in config.skip_layers if layer < layers),
    )
