"""A vision-language model around a compiled text decoder: a copy of its object, with the same other parts."""

import copy
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig

from ..decoder.decoder import Decoder
from ..errors import InputError, PackageError
from ..model.attach import outside_dynamo
from ..model.changes import DecoderVersions
from ..model.check_inputs import check_session
from ..model.generation import CompiledGeneration
from ..model.pool import Pool
from ..sessions.session import Session
from ..upstream.cache import cache_argument, cache_kwargs, give_both_names
from ..upstream.generate import require_generation_steps
from ..upstream.module_object import require_moves_in_one_place, shallow_copy
from ..upstream.vision_language import SIZES, ImageSteps, without_axes_state
from .parts import VisionLanguageParts
from .text_model import CompiledTextModel


class CompiledVisionLanguage(ImageSteps, CompiledGeneration):
    """A vision-language model that reads on sessions: its own forward runs around the compiled decoder.

    Attributes:
        qfpass_has_axes: whether its positions are of several axes.
    """

    qfpass_has_axes: bool

    def forward(  # type: ignore[override]  # the original's own arguments
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Session | None = None,
        cache: Session | None = None,
        **named: Any,
    ) -> Any:
        """The original's output for ids [B, S] and images; the session is updated.

        Args:
            attention_mask: [B, S], or [B, earlier columns + S]; see `CompiledDecoder.forward`.
            past_key_values, cache: a session of this model; without one the call uses a new session.
            named: the original's other arguments. Images are those of the ids of this call alone.

        Raises:
            InputError, SessionError: an argument is wrong; the message says what to do.
        """
        if named.get("output_attentions"):
            raise InputError("output_attentions= is not something that a compiled decoder computes.")
        self._refuse_unplaced_images(named)
        if self.qfpass_has_axes and named.get("position_ids") is not None:
            raise InputError(
                "positions of several axes are counted by the model and its session: leave position_ids out."
            )
        session = cache_argument(past_key_values, cache)
        decoder = self.follow_changes()
        if session is None:
            session = decoder.session()
        check_session(decoder, session, self.qfpass_changes)
        keeps = named.get("use_cache") is not False
        if isinstance(attention_mask, torch.Tensor) and isinstance(input_ids, torch.Tensor):
            attention_mask = _of_new_columns(session, attention_mask, input_ids)
        original: Any = type(self.qfpass_original)
        with session.in_use():
            session.given_ids = input_ids if isinstance(input_ids, torch.Tensor) else None
            try:
                with torch.no_grad():
                    out = original.forward(
                        self, input_ids=input_ids, attention_mask=attention_mask,
                        **{**named, "use_cache": True, **cache_kwargs(session)},
                    )  # fmt: skip
            finally:
                session.given_ids = None
        if keeps and named.get("return_dict") is not False:
            give_both_names(out)
        return out

    def _refuse(
        self, settings: GenerationConfig, given: GenerationConfig | None, named: dict[str, Any]
    ) -> None:
        if getattr(settings, "use_mtp", None):
            raise InputError(
                "use_mtp is not possible on a compiled vision-language model: use assistant_model or "
                "prompt_lookup_num_tokens."
            )
        super()._refuse(settings, given, named)

    def _refuse_unplaced_images(self, named: Mapping[str, Any]) -> None:
        """Raise InputError for images without their sizes, by which their positions are counted."""
        images = any(named.get(name) is not None for name in ("pixel_values", "pixel_values_videos"))
        images |= bool(named.get("mm_encoder_outputs"))
        sizes = any(named.get(name) is not None for name in SIZES)
        if self.qfpass_has_axes and images and not sizes:
            raise InputError(
                "images were given without image_grid_thw, from which their positions follow: pass all "
                "that the processor returns."
            )

    def pool(self, rows: int) -> Pool:
        """Refuse a pool, which reads ids alone.

        Raises:
            InputError: always.
        """
        raise InputError("a pool reads ids alone: use sessions with a vision-language model.")

    def export(self, folder: str | Path, *, rows: int = 1, weights: bool = True) -> None:
        """Refuse to export.

        Raises:
            PackageError: always.
        """
        raise PackageError("a vision-language model isn't exported: its images run as the original's code.")


def _of_new_columns(session: Session, mask: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """A mask of the call's own columns [B, S], of a mask that may cover earlier ones."""
    earlier, length = session.columns, ids.shape[-1]
    if mask.dim() != 2 or mask.shape[-1] != earlier + length or not earlier:
        return mask
    if mask[:, :earlier].sum(1).tolist() != list(session.row_tokens):
        return mask  # it is refused where it is read
    return mask[:, earlier:]


def attach_vision_language(
    model: nn.Module, parts: VisionLanguageParts, decoder: Decoder, changes: DecoderVersions
) -> CompiledVisionLanguage:
    """A model that shares `model`'s parts and runs `decoder` in the place of its text model."""
    require_moves_in_one_place()
    require_generation_steps()
    held = {"qfpass_decoder": decoder, "qfpass_changes": changes, "qfpass_has_axes": parts.has_axes}
    compiled: Any = shallow_copy(model)
    kind = type(model)
    compiled.__class__ = outside_dynamo(CompiledVisionLanguage, kind.__name__, kind)
    # generate takes the arguments that this names.
    compiled.__class__.forward.__signature__ = inspect.signature(kind.forward)
    whole: Any = model
    compiled.__dict__ |= held | {
        "config": copy.deepcopy(whole.config),
        "generation_config": copy.deepcopy(whole.generation_config),
        "qfpass_original": model,
    }
    *path, name = parts.path.split(".")
    holder = compiled
    for step in path:
        twin = shallow_copy(getattr(holder, step))
        if parts.has_axes:
            twin.__dict__.pop("rope_deltas", None)
            twin.__class__ = without_axes_state(type(twin), __name__)
        setattr(holder, step, twin)
        holder = twin
    text_model = shallow_copy(getattr(holder, name))
    text_kind = type(text_model)
    text_model.__class__ = outside_dynamo(CompiledTextModel, text_kind.__name__, text_kind)
    text_model.__dict__ |= held | {"qfpass_original": parts.decoder.text_model}
    setattr(holder, name, text_model)
    result: CompiledVisionLanguage = compiled
    return result
