"""What transformers' vision-language models call their parts."""

from typing import Any

import torch
from torch import nn

from ..errors import InputError
from .entry import Needed

# What begins the names of arguments for images that models hand on to text models, which don't use them.
OF_IMAGES = ("vision_", "image_", "pixel_", "video_")
SIZES = ("image_grid_thw", "video_grid_thw")  # arguments by which positions of several axes are counted
AXES_STATE = "rope_deltas"  # a model's memory of how far the positions of its last text are from its tokens


@Needed
def text_model_of(model: Any) -> nn.Module | None:
    """The text model inside a transformers model whose config has a part for images; None in any other.

    Without it: vision-language models can't be compiled.
    """
    config = model.config
    if config.get_text_config(decoder=True) is config or getattr(config, "vision_config", None) is None:
        return None
    found: nn.Module = model.get_decoder()
    return None if found is model or found is model.base_model else found


def sees_both_ways(text_model: Any) -> bool:
    """Whether a text model's config says that its tokens see later ones too."""
    return bool(getattr(text_model.config, "use_bidirectional_attention", False))


def counts_positions_by_axes(model: Any) -> bool:
    """Whether a vision-language model gives its text model positions of time, height and width."""
    return hasattr(model.base_model, AXES_STATE)


def without_axes_state(kind: type, name: str) -> type:
    """A subclass of `kind` that forgets how far the positions of its last text are from its tokens.

    One object serves many sessions, and a session keeps that itself. Positions are then counted from 0.
    """
    forgetful = property(lambda self: None, lambda self, value: None)
    return type(kind.__name__, (kind,), {"__module__": name, AXES_STATE: forgetful})


class ImageSteps:
    """A base class before the model's own, whose forward counts positions by the sizes of images."""

    def _prepare_multimodal_encoder_kwargs_for_generation(
        self, model_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        sizes = {name: model_kwargs[name] for name in SIZES if model_kwargs.get(name) is not None}
        own: Any = super()
        made: dict[str, Any] = own._prepare_multimodal_encoder_kwargs_for_generation(model_kwargs)
        return made | sizes

    def _expand_inputs_for_generation(self, expand_size: int = 1, *args: Any, **kwargs: Any) -> Any:
        """Repeat the rows for beams or several answers.

        Raises:
            InputError: images are of different sizes, which would be repeated in another order than the rows.
        """
        for sizes in (kwargs.get(name) for name in SIZES if expand_size > 1):
            if isinstance(sizes, torch.Tensor) and len(sizes.unique(dim=0)) > 1:
                raise InputError(
                    "beams or several answers for images of different sizes aren't supported on this model: "
                    "give images of one size, or ask for one answer."
                )
        own: Any = super()
        return own._expand_inputs_for_generation(expand_size, *args, **kwargs)
