"""The private steps of transformers' generate that a compiled decoder replaces.

This module imports transformers' generation. So only code that compiles a transformers model imports it.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig, GenerationMixin, StoppingCriteriaList

from .cache import cache_name
from .entry import Needed

# Arguments that some versions pass to a forward although a session knows them or no forward needs them.
_NOT_FOR_FORWARD = ("cache_position", "tokenizer", "assistant_tokenizer", "next_sequence_length")

_OF_IMAGES = ("pixel_", "image_", "video_", "mm_")  # what the arguments of images and videos begin with


@Needed
def require_generation_steps() -> None:
    """Raise unless generate still has the steps that `GenerationSteps` replaces.

    Without it: padding would be taken for text, and rows that have ended would read on.
    """
    for name in (
        "generate", "generate_batch", "prepare_inputs_for_generation", "_sample", "_get_candidate_generator",
    ):  # fmt: skip
        getattr(GenerationMixin, name)


@Needed
def generation_settings(
    model: Any, given: GenerationConfig | None, named: dict[str, Any]
) -> GenerationConfig:
    """The settings of a call of generate: the model's own, overridden by `given`, then by `named`.

    Without it: what a session can't do isn't refused before the prompt is read.
    """
    settings = copy.deepcopy(model.generation_config)
    asked = {} if given is None else {k: v for k, v in given.to_dict().items() if v is not None}
    asked |= {name: value for name, value in named.items() if hasattr(settings, name)}
    for name, value in asked.items():  # `update` would validate them first
        setattr(settings, name, value)
    return settings


def unread_columns(session: Any, input_ids: torch.Tensor) -> int:
    """How many of the last columns of a running generate's ids its session hasn't read."""
    return input_ids.shape[1] - session.columns - session.unread.ahead if session.unread else 1


class GenerationSteps:
    """A base class before the model's own, so that the session handles positions, masks and ended rows."""

    # (session, ids [1, S]) -> how many drafted tokens the session can read after these and take back
    most_candidates: Callable[[Any, torch.Tensor], int]
    # a number of layers -> the model of these, which drafts
    first_layers: Callable[[int], Any]

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        *args: Any,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The arguments of the next forward: those of GenerationMixin, without an attention mask in steps.

        In a step every row has one new token, unless the row rests. The method of GenerationMixin is called,
        not that of the model's class: some old classes have no cache and pass the whole text in every step.
        """
        generic: Any = GenerationMixin.prepare_inputs_for_generation
        session = kwargs.get(cache_name())
        if session is None:  # older versions ask a draft model by themselves before its first generate
            return generic(self, input_ids, *args, is_first_iteration=is_first_iteration, **kwargs)
        unread = session.unread
        columns = unread_columns(session, input_ids)
        # Cut here, since each version has its own rules for what a cache has read already.
        kwargs |= {"next_sequence_length": columns, "cache_position": torch.arange(columns)}
        own = input_ids[:, -columns:]
        if is_first_iteration and inputs_embeds is not None:  # later steps read ids
            kwargs["inputs_embeds"] = inputs_embeds
        inputs = generic(self, own, *args, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration or (unread and unread.padded == "nowhere"):
            inputs.pop("attention_mask", None)
        elif unread and unread.padded == "as guessed" and inputs.get("attention_mask") is not None:
            inputs["attention_mask"] = inputs["attention_mask"][:, -columns:]
        if kwargs.get("position_ids") is None:  # older versions count them here
            inputs.pop("position_ids", None)
        for name in _NOT_FOR_FORWARD:
            inputs.pop(name, None)
        if not is_first_iteration:  # some versions pass images on to every step
            inputs = {name: value for name, value in inputs.items() if not name.startswith(_OF_IMAGES)}
        return inputs

    def _prepare_position_ids_for_generation(self, *args: Any, **kwargs: Any) -> None:
        """Return no positions: the session knows those of its rows, also after padding on the right."""

    def _get_candidate_generator(
        self, *args: Any, model_kwargs: dict[str, Any], input_ids: torch.Tensor, **kwargs: Any
    ) -> Any:
        """The generator of drafts, which gives no more tokens than the session can take back."""
        settings = kwargs["generation_config"]  # this call's own
        if settings.assistant_early_exit is not None and len(input_ids) == 1:  # transformers refuses more
            kwargs["assistant_model"] = self.first_layers(settings.assistant_early_exit)
            settings.assistant_early_exit = None
        generator = super()._get_candidate_generator(  # type: ignore[misc]
            *args, model_kwargs=model_kwargs, input_ids=input_ids, **kwargs
        )
        session, draft = model_kwargs[cache_name()], generator.get_candidates

        def get_candidates(input_ids: torch.Tensor, *rest: Any, **named: Any) -> tuple[torch.Tensor, Any]:
            most = self.most_candidates(session, input_ids)
            if hasattr(generator, "num_assistant_tokens"):  # a draft model writes no more than is read
                generator.num_assistant_tokens = min(generator.num_assistant_tokens, max(1, most))
            if "model_kwargs" in named:  # multi-token prediction takes its positions from there
                positions = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
                named["model_kwargs"] = {**named["model_kwargs"], "position_ids": positions}
            ids, logits = draft(input_ids, *rest, **named)
            if most == 0 or logits is None:
                return ids[:, : input_ids.shape[1] + most], None
            return ids[:, : input_ids.shape[1] + most], logits[:, :most]

        generator.get_candidates = get_candidates
        return generator

    def _sample(
        self, input_ids: torch.Tensor, *args: Any, stopping_criteria: StoppingCriteriaList, **kwargs: Any
    ) -> Any:
        session = kwargs[cache_name()]
        # Without an end-of-text token, transformers lets ended rows write on until all rows have ended.
        padded = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        if padded and len(input_ids) > 1:
            stopping_criteria = _Resting(stopping_criteria, session)
        try:
            return super()._sample(  # type: ignore[misc]
                input_ids, *args, stopping_criteria=stopping_criteria, **kwargs
            )
        finally:
            session.resting = frozenset()


class _Resting(StoppingCriteriaList):
    """Stopping criteria that let a session's rows rest after they have ended and read their last token."""

    def __init__(self, criteria: StoppingCriteriaList, session: Any) -> None:
        super().__init__(criteria)
        self._session, self._ended = session, frozenset[int]()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        ended = super().__call__(input_ids, scores, **kwargs)
        self._session.resting = self._ended
        self._ended |= frozenset(ended.nonzero().flatten().tolist())
        return ended
