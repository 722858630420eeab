"""Find the text decoder inside a vision-language model."""

import inspect
from typing import Any, NamedTuple

import torch
from torch import nn

from ..errors import CaptureError
from ..graph.devices import devices_of
from ..upstream.heads import is_pretrained
from ..upstream.vision_language import counts_positions_by_axes, sees_both_ways, text_model_of


class DecoderOutput(NamedTuple):
    """What `TextDecoder` returns: logits [B, S, V], and hidden states if they are asked for."""

    logits: torch.Tensor
    hidden_states: tuple[torch.Tensor, ...] | None


class TextDecoder(nn.Module):
    """The text model of a vision-language model with the head behind it: a decoder as others are.

    Attributes:
        config: the text model's.
    """

    def __init__(self, text_model: Any, head: nn.Module) -> None:
        super().__init__()
        self.text_model, self.head, self.config = text_model, head, text_model.config
        self.training = text_model.training

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> DecoderOutput:
        """The logits for ids [B, S] or embeddings [B, S, E], without a cache."""
        out = self.text_model(
            input_ids=input_ids, position_ids=position_ids, inputs_embeds=inputs_embeds, use_cache=False,
            output_hidden_states=output_hidden_states, return_dict=True,
        )  # fmt: skip
        return DecoderOutput(self.head(out.last_hidden_state), out.hidden_states)

    def get_input_embeddings(self) -> nn.Module:
        """The text model's own."""
        text_model: Any = self.text_model
        found: nn.Module = text_model.get_input_embeddings()
        return found

    def set_attn_implementation(self, name: str) -> None:
        """Set the text model's attention, as transformers' models let one do."""
        text_model: Any = self.text_model
        text_model.set_attn_implementation(name)


class VisionLanguageParts(NamedTuple):
    """The parts of a vision-language model that compile needs.

    Attributes:
        path: of the text model in the whole.
        decoder: the text model with the head.
        has_axes: whether the model gives its text model positions of several axes.
    """

    path: str
    decoder: TextDecoder
    has_axes: bool


def vision_language_parts(model: nn.Module) -> VisionLanguageParts | None:
    """The parts of a vision-language model; None for any other model.

    Raises:
        CaptureError: it lies on several devices, has no head over its vocabulary, can't read text alone, or
            tokens see later ones.
    """
    if not is_pretrained(model):
        return None
    text_model = text_model_of(model)
    if text_model is None:
        return None
    whole: Any = model
    head = whole.get_output_embeddings()
    if head is None:
        raise CaptureError(
            f"{type(model).__name__} has no language-model head: its get_output_embeddings() returns None. "
            "Compile a model that has one, such as most that AutoModelForImageTextToText loads."
        )
    if needed := _always_needed(type(model)):
        raise CaptureError(
            f"{type(model).__name__} can't read text alone: every call of its forward needs "
            f"{' and '.join(needed)}. Compile its language model by itself, if that is a decoder."
        )
    if sees_both_ways(text_model):
        raise CaptureError(
            f"in {type(model).__name__} the tokens of an image and of the prompt after it see each other in "
            "both directions, but in a compiled decoder a token sees earlier ones only."
        )
    if len(devices := devices_of(model)) > 1:
        raise CaptureError(
            f"{type(model).__name__} takes images and is spread over {', '.join(map(str, devices))}: put it "
            "on one device."
        )
    path = next(name for name, module in model.named_modules() if module is text_model)
    decoder = TextDecoder(text_model, head)
    # Errors and waits tell of the model that the caller knows.
    decoder.__class__ = type(type(model).__name__, (TextDecoder,), {"__module__": __name__})
    return VisionLanguageParts(path, decoder, counts_positions_by_axes(model))


def _always_needed(kind: type) -> list[str]:
    """The arguments other than ids that every call of a model's forward must be given."""
    arguments: Any = inspect.signature(kind.forward).parameters  # type: ignore[attr-defined]
    positional = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [
        name
        for name, argument in arguments.items()
        if argument.kind in positional
        and argument.default is inspect.Parameter.empty
        and name not in ("self", "input_ids")
    ]
