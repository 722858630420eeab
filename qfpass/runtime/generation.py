"""What a compiled transformers model adds to its own class for `generate` to run on sessions.

Imports transformers' generation, so that only `attach` imports this, for a model of transformers.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation import GenerationMode

from ..errors import InputError, SessionError
from ..upstream.cache import as_cache, give_both_names, one_of
from ..upstream.generate import GenerationSteps, generation_settings
from .continuation import columns_to_read
from .inputs import check_session
from .model import CompiledDecoder
from .session import Session

MODES = (
    GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
)  # fmt: skip


class CompiledGeneration(GenerationSteps, CompiledDecoder):
    """A compiled decoder of transformers; `generate` is transformers' own, some of its steps replaced."""

    def generate(
        self,
        *args: Any,
        generation_config: GenerationConfig | None = None,
        past_key_values: Session | None = None,
        cache: Session | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' generate over a session: the one given, by either name, or a new one for this call.

        Padding goes to the left or the right of a row. A row that has ended reads nothing more. A session
        that holds tokens reads on: the ids are the whole text, or what is new. Where the context ends, and
        the model was compiled with overflow="error", so does the text.

        Raises:
            InputError, SessionError: settings that a session can't go by, or a text that differs from what it
                has read; nothing has been read.
        """
        given = generation_config if len(args) < 2 else args[1]
        self._refuse(given, kwargs)
        decoder, session = self.follow_changes(), one_of(past_key_values, cache)
        if session is None:
            session = decoder.session()
        check_session(decoder, session, self.qfpass_changes)
        kwargs |= self._overrides()
        self._end_with_context(session, given, args, kwargs)
        kwargs.pop("prefill_chunk_size", None)  # a session reads in chunks of its own
        if generation_config is not None:
            kwargs["generation_config"] = _without_chunks(generation_config)
        with session.in_use(), _reading_on(session, args, kwargs):
            written = super().generate(*args, **as_cache(session), **kwargs)  # type: ignore[misc]
        give_both_names(written)
        return written

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: continuous batching pages a cache of its own."""
        raise InputError("continuous batching needs a paged cache: call generate with a batch instead.")

    def _refuse(self, given: GenerationConfig | None, named: dict[str, Any]) -> None:
        """Refuse what the caller asks for and a session can't do."""
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
        """Let generate stop where no more tokens can be read, instead of failing there."""
        decoder = self.qfpass_decoder
        if decoder.config.overflow != "error" or len(args) > 3:
            return
        rests = generation_settings(self, given, named).eos_token_id is not None
        end = _EndOfContext(session, decoder.sizes.context_length, rests)
        named["stopping_criteria"] = StoppingCriteriaList([*(named.get("stopping_criteria") or ()), end])

    def _overrides(self) -> dict[str, Any]:
        """What the checkpoint's own settings say of a cache, and a session doesn't go by."""
        own: Any = self.generation_config
        overrides: dict[str, Any] = {}
        if getattr(own, "use_cache", None) is False:
            overrides["use_cache"] = True
        if getattr(own, "cache_implementation", None) is not None:
            overrides["cache_implementation"] = None
        return overrides


class _EndOfContext(StoppingCriteria):
    """Ends a row that has read as many tokens as the context has; all of them, if rows can't rest."""

    def __init__(self, session: Session, limit: int, rests: bool) -> None:
        self._session, self._limit, self._rests = session, limit, rests

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        full = torch.tensor([tokens >= self._limit for tokens in self._session.row_tokens])
        if not self._rests or len(full) != len(input_ids):  # beam search asks for more than its rows
            full = full.any().expand(len(input_ids))
        return full.to(input_ids.device)


def _without_chunks(given: GenerationConfig) -> GenerationConfig:
    """The same settings, but for chunks of transformers'."""
    if given.prefill_chunk_size is None:
        return given
    given = copy.deepcopy(given)
    given.prefill_chunk_size = None
    return given


@contextmanager
def _reading_on(session: Session, args: Sequence[Any], named: Mapping[str, Any]) -> Iterator[None]:
    """Let generate read those of its ids that the session hasn't read."""
    ids = next((x for x in (*args[:1], named.get("inputs"), named.get("input_ids")) if x is not None), None)
    if isinstance(ids, torch.Tensor) and ids.dim() == 2:
        session.columns_to_read = columns_to_read(session, ids, named.get("attention_mask"))
    try:
        yield
    finally:
        session.columns_to_read = None
