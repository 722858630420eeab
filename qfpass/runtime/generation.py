"""What a compiled transformers model adds to its own class for `generate` to run on sessions."""

from typing import Any

import torch
from transformers import GenerationMixin, StoppingCriteriaList
from transformers.generation import GenerationMode

from ..errors import InputError, SessionError
from .inputs import check_session
from .model import CompiledDecoder
from .session import Session

MODES = (
    GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
)  # fmt: skip


class CompiledGeneration(CompiledDecoder):
    """A compiled decoder of transformers; `generate` is transformers' own, some of its steps replaced."""

    def generate(self, *args: Any, past_key_values: Session | None = None, **kwargs: Any) -> Any:
        """transformers' generate over a session: the one given, or a new one for this call.

        Padding goes to the left or the right of a row. A row that has ended reads nothing more.
        """
        session = past_key_values if past_key_values is not None else self.session()
        check_session(self.qfpass_decoder, session)
        with session.in_use():
            return super().generate(*args, past_key_values=session, **kwargs)  # type: ignore[misc]

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: continuous batching pages a cache of its own."""
        raise InputError("continuous batching needs a paged cache: call generate with a batch instead.")

    def _prepare_generation_config(self, *args: Any, **kwargs: Any) -> Any:
        config, rest = super()._prepare_generation_config(*args, **kwargs)  # type: ignore[misc]
        if config.use_cache is False:
            raise InputError("use_cache=False has no meaning for a compiled decoder: leave it out.")
        if config.cache_implementation is not None:
            raise InputError(
                f"cache_implementation={config.cache_implementation!r} has no meaning for a compiled "
                "decoder, whose cache is a session: leave it out."
            )
        return config, rest

    def _get_deprecated_gen_repo(self, generation_mode: GenerationMode, *args: Any, **kwargs: Any) -> Any:
        if generation_mode not in MODES:
            possible = ", ".join(mode.value for mode in MODES)
            raise SessionError(
                f"{generation_mode.value} is not possible on a compiled decoder: a session can't take tokens "
                f"back, since the keys evicted for them are gone. What is possible: {possible}."
            )
        return super()._get_deprecated_gen_repo(generation_mode, *args, **kwargs)  # type: ignore[misc]

    def _prepare_position_ids_for_generation(self, *args: Any, **kwargs: Any) -> None:
        """None: a session knows its rows' positions, also behind padding on the right."""

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, *args: Any, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        """transformers' own, without a mask in steps: every row's new token is one, unless the row rests.

        Not the model's class's: some old ones pass the whole text in every step, having no cache.
        """
        generic: Any = GenerationMixin.prepare_inputs_for_generation
        inputs = generic(self, input_ids, *args, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration:
            inputs.pop("attention_mask", None)
        return inputs

    def _sample(
        self,
        input_ids: torch.Tensor,
        *args: Any,
        stopping_criteria: StoppingCriteriaList,
        past_key_values: Session,
        **kwargs: Any,
    ) -> Any:
        # Without an end-of-text token, transformers lets finished rows write on until all are.
        padded = any(hasattr(criterion, "eos_token_id") for criterion in stopping_criteria)
        if padded and len(input_ids) > 1:
            stopping_criteria = _Resting(stopping_criteria, past_key_values)
        kwargs |= {"stopping_criteria": stopping_criteria, "past_key_values": past_key_values}
        try:
            return super()._sample(input_ids, *args, **kwargs)  # type: ignore[misc]
        finally:
            past_key_values.resting = frozenset()


class _Resting(StoppingCriteriaList):
    """Criteria that let a session's rows rest once they have ended and read their last token."""

    def __init__(self, criteria: StoppingCriteriaList, session: Session) -> None:
        super().__init__(criteria)
        self._session, self._ended = session, frozenset[int]()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> Any:
        ended = super().__call__(input_ids, scores, **kwargs)
        self._session.resting = self._ended
        self._ended |= frozenset(ended.nonzero().flatten().tolist())
        return ended
