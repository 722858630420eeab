"""CompiledGeneration: what a compiled transformers model adds so that `generate` runs on sessions.

This module imports transformers' generation, so only `attach` imports it, and only for transformers models.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation import GenerationMode

from ..errors import InputError, SessionError
from ..sessions.session import Session
from ..sessions.unread import Unread
from ..upstream.cache import cache_argument, cache_kwargs, give_both_names
from ..upstream.generate import GenerationSteps, generation_settings
from .check_inputs import check_session
from .compiled_decoder import CompiledDecoder
from .continuation import columns_to_read

MODES = (
    GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
)  # fmt: skip


class CompiledGeneration(GenerationSteps, CompiledDecoder):
    """A compiled transformers model; its `generate` is transformers' own with some steps replaced."""

    def generate(
        self,
        *args: Any,
        generation_config: GenerationConfig | None = None,
        past_key_values: Session | None = None,
        cache: Session | None = None,
        **kwargs: Any,
    ) -> Any:
        """The output of transformers' generate on a session: the one given by either name, or a new one.

        Padding goes to the left or the right of a row. A row that has ended reads no more tokens. For a
        session that holds tokens, the ids are the whole text or only its new part; without a mask every new
        id of a single text is a token, also one that is the padding id. If the model was compiled
        with overflow="error", generation ends at the context length.

        Raises:
            InputError, SessionError: settings that sessions don't support, or a text that differs from what
                the session has read; nothing has been read then.
        """
        given = generation_config if len(args) < 2 else args[1]  # its position in generate's signature
        self._refuse(given, kwargs)
        decoder, session = self.follow_changes(), cache_argument(past_key_values, cache)
        if session is None:
            session = decoder.session()
        check_session(decoder, session, self.qfpass_changes)
        kwargs |= self._overrides()
        self._end_with_context(session, given, args, kwargs)
        kwargs.pop("prefill_chunk_size", None)  # the decoder reads in its own chunks
        if generation_config is not None:
            kwargs["generation_config"] = _without_chunks(generation_config)
        with session.in_use(), _with_unread_columns(session, args, kwargs):
            written = super().generate(*args, **cache_kwargs(session), **kwargs)  # type: ignore[misc]
        give_both_names(written)
        return written

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse continuous batching, which needs a paged cache of its own.

        Raises:
            InputError: always.
        """
        raise InputError("continuous batching needs a paged cache: call generate with a batch instead.")

    def _refuse(self, given: GenerationConfig | None, named: dict[str, Any]) -> None:
        """Refuse settings of the caller that a session can't support."""
        settings = generation_settings(self, given, named)
        mode = settings.get_generation_mode(named.get("assistant_model"))
        if mode not in MODES:
            possible = ", ".join(mode.value for mode in MODES)
            raise SessionError(
                f"{mode.value} is not possible on a compiled decoder: a session can't take tokens "
                f"back, since the keys evicted for them are gone. What is possible: {possible}."
            )
        if named.get("use_cache", getattr(given, "use_cache", None)) is False:
            raise InputError("use_cache=False has no meaning for a compiled decoder: leave it out.")
        asked = named.get("cache_implementation", getattr(given, "cache_implementation", None))
        if asked is not None:
            raise InputError(
                f"cache_implementation={asked!r} has no meaning for a compiled decoder, whose cache is a "
                "session: leave it out."
            )

    def _end_with_context(
        self, session: Session, given: GenerationConfig | None, args: Sequence[Any], named: dict[str, Any]
    ) -> None:
        """Add a stopping criterion to `named`, so that generate stops at the context length and doesn't fail.

        Nothing is added if texts may go past it, or if the caller gives stopping criteria by position.
        """
        decoder = self.qfpass_decoder
        if decoder.config.overflow != "error" or len(args) > 3:
            return
        rests = generation_settings(self, given, named).eos_token_id is not None
        end = _EndOfContext(session, decoder.sizes.context_length, rests)
        named["stopping_criteria"] = StoppingCriteriaList([*(named.get("stopping_criteria") or ()), end])

    def _overrides(self) -> dict[str, Any]:
        """Keyword arguments that override the cache settings of the checkpoint's own generation config."""
        own: Any = self.generation_config
        overrides: dict[str, Any] = {}
        if getattr(own, "use_cache", None) is False:
            overrides["use_cache"] = True
        if getattr(own, "cache_implementation", None) is not None:
            overrides["cache_implementation"] = None
        return overrides


class _EndOfContext(StoppingCriteria):
    """Ends a row that has read `limit` tokens; ends all rows at once if they can't end one by one.

    `rests`: rows can end one by one, since there is an end-of-text token.
    """

    def __init__(self, session: Session, limit: int, rests: bool) -> None:
        self._session, self._limit, self._rests = session, limit, rests

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        full = torch.tensor([tokens >= self._limit for tokens in self._session.row_tokens])
        if not self._rests or len(full) != len(input_ids):  # beam search passes more candidates than rows
            full = full.any().expand(len(input_ids))
        return full.to(input_ids.device)


def _without_chunks(given: GenerationConfig) -> GenerationConfig:
    """The same settings without transformers' chunked prefill."""
    if given.prefill_chunk_size is None:
        return given
    given = copy.deepcopy(given)
    given.prefill_chunk_size = None
    return given


@contextmanager
def _with_unread_columns(session: Session, args: Sequence[Any], named: Mapping[str, Any]) -> Iterator[None]:
    """A context in which `session.unread` tells which of generate's ids are not yet read."""
    ids = next((x for x in (*args[:1], named.get("inputs"), named.get("input_ids")) if x is not None), None)
    mask = named.get("attention_mask")
    if isinstance(ids, torch.Tensor) and ids.dim() == 2:
        columns = columns_to_read(session, ids, mask)
        if mask is not None:
            session.unread = Unread(columns, "as masked")
        elif session.tokens_seen and len(ids) == 1:  # before beams or samples repeat it
            session.unread = Unread(columns, "nowhere")
        else:
            session.unread = Unread(columns, "as guessed")
    try:
        yield
    finally:
        session.unread = None
