"""Early exit: the first layers of a compiled model draft for it, as a compiled model of their own."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from ..config import Config
from ..decoder.decoder import Decoder
from ..errors import InputError
from ..store.scores import score_named
from ..upstream.module_object import shallow_copy

_INSTEAD = "Give a copy of the model with fewer layers as assistant_model."


class EarlyExits:
    """The compiled first layers of a model, made when they are asked for and kept as long as its decoder.

    Args:
        model: the original; None if it can't be cut or compiled here.
        build: compiles a model as settings say.
    """

    def __init__(self, model: Any = None, build: Callable[[nn.Module, Config], Any] | None = None) -> None:
        self._model, self._build = model, build
        self._made = WeakKeyDictionary[Decoder, dict[int, Any]]()

    def of(self, layers: Any, decoder: Decoder) -> Any:
        """The compiled model of the first `layers` layers, in stores and with filters like `decoder`'s.

        Raises:
            InputError: there are no such layers, or the model can't be cut.
            QFPassError: they can't be compiled.
        """
        is_split = decoder.part is not None or decoder.lies_on_several
        if self._model is None or self._build is None or is_split:
            raise InputError(
                "assistant_early_exit is not possible on exported models, on vision-language models and on "
                f"models over several processes or devices. {_INSTEAD}"
            )
        first = first_layers(self._model, layers, len(decoder.whole_layers))
        made = self._made.setdefault(decoder, {})
        if layers not in made:
            made[layers] = self._build(first, _settings(decoder, layers))
        return made[layers]


def first_layers(model: Any, layers: Any, count: int) -> Any:
    """A model of the first of a transformers model's `count` layers; all its parts are the model's.

    Raises:
        InputError: there are no such layers, or it isn't known where the model's layers stand.
    """
    lists = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if len(lists) != 1:
        raise InputError(
            f"assistant_early_exit is not possible on {type(model).__name__}: {len(lists)} of its lists of "
            f"modules have as many as there are attentions, {count}, so it isn't known which are its layers. "
            f"{_INSTEAD}"
        )
    if type(layers) is not int or not 0 < layers < count:
        raise InputError(
            f"assistant_early_exit must be a number of layers from 1 to {count - 1}, fewer than the model's "
            f"{count}, not {layers!r}."
        )
    twin = part = shallow_copy(model)
    *parents, name = lists[0].split(".")
    for parent in parents:
        setattr(part, parent, shallow_copy(getattr(part, parent)))
        part = getattr(part, parent)
    setattr(part, name, getattr(part, name)[:layers])
    return twin


def _settings(decoder: Decoder, layers: int) -> Config:
    """The settings of a decoder for its first layers."""
    config, filters = decoder.config, decoder.filters
    # Where nothing is evicted, a decoder has no filters, also with a score that reads some.
    is_read = filters is not None or config.score is None or config.score.filters is None
    return replace(
        config,
        score=config.score if is_read else score_named("recency"),
        filters=None if filters is None else filters.of_first(layers),
        # Their shares differ, and with them the longest chunk.
        chunk=None,
        skip_layers=tuple(layer for layer in config.skip_layers if layer < layers),
    )
