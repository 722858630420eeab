"""The compiled text decoder in the place of a vision-language model's text model."""

from collections.abc import Sequence
from typing import Any

import torch

from ..decoder.read import read
from ..errors import InputError
from ..model.check_inputs import check_inputs, check_session
from ..model.compiled_decoder import CompiledDecoder
from ..sessions.rows import TokenColumns
from ..sessions.session import Session
from ..upstream.cache import cache_argument, hidden_output
from ..upstream.vision_language import OF_IMAGES

AXES = 3


class CompiledTextModel(CompiledDecoder):
    """Called by the rest of the model with embeddings; gives the last hidden values.

    Attributes:
        qfpass_has_axes: whether its positions are of several axes.
    """

    qfpass_has_axes: bool

    def forward(  # type: ignore[override]  # like the original it knows no logits
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: Any = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Session | None = None,
        cache: Session | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **others: Any,
    ) -> Any:
        """The last hidden values [B, S, E] for embeddings [B, S, E]; the session is updated.

        Args:
            attention_mask: [B, S] or [B, earlier columns + S], or causal masks that the model has made.
            position_ids: of three axes [3, B, S], counted from 0 within the call, or as other decoders'.

        Raises:
            InputError: an argument that the compiled decoder doesn't read, or masks that aren't causal.
        """
        # Original text models take no notice of these either: the whole model cuts what they return.
        unread = ("return_dict", "logits_to_keep", *OF_IMAGES)
        for name, value in others.items():
            if value is not None and value is not False and not name.startswith(unread):
                raise InputError(
                    f"the text model of this vision-language model is given {name}, which a compiled decoder "
                    "doesn't read: use the original model."
                )
        decoder, session = self.follow_changes(), cache_argument(past_key_values, cache)
        if session is None:
            session = decoder.session()
        check_session(decoder, session, self.qfpass_changes)
        (last,) = decoder.by_ends.others.hidden_numbers([-1])
        with session.in_use():
            by_axes = self.qfpass_has_axes and position_ids is not None
            tokens, spans = check_inputs(
                decoder, session, input_ids, _columns_mask(attention_mask),
                None if by_axes else position_ids, inputs_embeds,
            )  # fmt: skip
            if session.given_ids is not None and session.given_ids.shape == tokens.ids.shape:
                tokens = tokens._replace(ids=session.given_ids.to(tokens.ids.device, torch.long))
            if self.qfpass_has_axes:
                tokens = tokens._replace(axes=_axes(session, spans, tokens.ids, position_ids))
            tokens = tokens._replace(hidden=(last,), logits=False)
            hidden = read(decoder, session, tokens, spans, torch.arange(tokens.columns))
            if by_axes and tokens.axes is not None:
                _follow_axes(session, spans, tokens.axes)
        return hidden_output(hidden, None if use_cache is False else session)


def _columns_mask(mask: Any) -> torch.Tensor | None:
    """The mask of columns; None where masks [B, 1, S, keys], one or several by name, are plainly causal.

    Raises:
        InputError: such a mask shows a token one that comes later, or hides an earlier one outside a window.
    """
    if mask is None or (isinstance(mask, torch.Tensor) and mask.dim() == 2):
        return mask
    for name, each in (mask if isinstance(mask, dict) else {"full_attention": mask}).items():
        if each is not None:
            _require_causal(each, in_window=not name.startswith("full"))
    return None


def _require_causal(mask: Any, in_window: bool) -> None:
    if not isinstance(mask, torch.Tensor) or mask.dim() != 4:
        raise InputError(f"attention_mask holds a {type(mask).__name__}, which can't be read.")
    shown = mask if mask.dtype == torch.bool else mask > -1e4
    tokens, keys = shown.shape[-2:]
    place = torch.arange(keys, device=shown.device)
    distance = place[keys - tokens :, None] - place
    if bool((shown & (distance < 0)).any()):
        raise InputError(
            "in this model the tokens of an image see each other in both directions, but in a compiled "
            "decoder a token sees earlier ones only: use the original for texts with images."
        )
    window = int(shown.sum(-1).max()) if in_window else keys
    if not bool((shown == ((distance >= 0) & (distance < window))).all()):
        raise InputError(
            "attention_mask hides keys from some tokens and not from others. A compiled decoder takes masks "
            "[batch, tokens]; of the masks that this model makes itself, it only takes those without padding."
        )


def _axes(
    session: Session, spans: Sequence[TokenColumns], ids: torch.Tensor, given: torch.Tensor | None
) -> torch.Tensor:
    """The positions [B, S, AXES] of a call's tokens, which go on from each row's; those given start at 0."""
    if given is None:
        columns = torch.arange(ids.shape[1], device=ids.device)
        axes = torch.stack([columns - span.start for span in spans])[..., None].expand(-1, -1, AXES)
    elif given.dim() == 3 and given.shape[0] in (AXES, AXES + 1) and given.shape[1:] == ids.shape:
        axes = given[-AXES:].permute(1, 2, 0).to(ids.device)
    else:
        raise InputError(f"position_ids must be [{AXES}, batch, tokens], not {tuple(given.shape)}.")
    starts = (
        [row.position + row.axes_ahead for row in session.rows] if session.tokens_seen else [0] * len(ids)
    )
    return axes + torch.tensor(starts, device=ids.device)[:, None, None]


def _follow_axes(session: Session, spans: Sequence[TokenColumns], axes: torch.Tensor) -> None:
    """Let each row that read tokens go on behind the largest of their positions."""
    for row, span in enumerate(spans):
        if span.tokens:
            session.set_next_on_axes(row, int(axes[row, slice(*span)].max()) + 1)
