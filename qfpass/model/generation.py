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

from ..decoder.taken_back import most_taken_back
from ..errors import InputError, SessionError
from ..sessions.session import Session
from ..sessions.unread import Unread
from ..upstream.cache import cache_argument, cache_kwargs, give_both_names
from ..upstream.generate import GenerationSteps, generation_settings, unread_columns
from .adapters import refuse_adapter_names
from .check_inputs import check_session
from .compiled_decoder import CompiledDecoder
from .continuation import columns_to_read
from .drafts import (
    MOST,
    forget_what_differs,
    most_drafted,
    refuse_drafts,
    refuse_multi_token_drafts,
    tokens_kept,
)
from .early_exit import EarlyExits

MODES = (
    GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE, GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE, GenerationMode.ASSISTED_GENERATION,
)  # fmt: skip


class CompiledGeneration(GenerationSteps, CompiledDecoder):
    """A compiled transformers model; its `generate` is transformers' own with some steps replaced."""

    qfpass_early_exits = EarlyExits()

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
        id of a single text is a token, also one that is the padding id. `inputs_embeds` [B, S, E] are always
        new, and what is returned then has the written ids alone. If the model was compiled
        with overflow="error", generation ends at the context length. With drafts (`assistant_model`,
        `prompt_lookup_num_tokens`) the session keeps what it needs to take rejected tokens back.

        Raises:
            InputError, SessionError: settings that sessions don't support, or a text that differs from what
                the session has read; nothing has been read then.
        """
        given = generation_config if len(args) < 2 else args[1]  # its position in generate's signature
        settings = generation_settings(self, given, kwargs)
        self._refuse(settings, given, kwargs)
        decoder, session = self.follow_changes(), cache_argument(past_key_values, cache)
        if session is None:
            session = decoder.session()
        check_session(decoder, session, self.qfpass_changes)
        if getattr(settings, "use_mtp", None):
            refuse_multi_token_drafts(decoder, session)
        if settings.is_assistant:
            self._write_drafts(session, args, kwargs)
        kept = 0
        if _mode(settings, kwargs) == GenerationMode.ASSISTED_GENERATION:
            kept = tokens_kept(decoder, session, settings)
        kwargs |= self._overrides()
        self._end_with_context(session, settings, args, kwargs)
        kwargs.pop("prefill_chunk_size", None)  # the decoder reads in its own chunks
        if generation_config is not None:
            kwargs["generation_config"] = _without_cache_settings(generation_config)
        if decoder.part is not None and settings.do_sample:
            decoder.part.share_chance(decoder.device)
        with session.in_use(), session.taking_back(kept), _with_unread_columns(session, args, kwargs):
            written = super().generate(*args, **cache_kwargs(session), **kwargs)  # type: ignore[misc]
        give_both_names(written)
        return written

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse continuous batching, which needs a paged cache of its own.

        Raises:
            InputError: always.
        """
        raise InputError("continuous batching needs a paged cache: call generate with a batch instead.")

    def set_input_embeddings(self, value: Any) -> None:
        """Refuse to change the embedding, which is the original's.

        Raises:
            InputError: always.
        """
        raise InputError(
            "a compiled decoder's embedding and head are its original's: change them there (its attribute "
            "qfpass_original). Sampling with two tokenizers changes those of the assistant_model: "
            "give the original model as the assistant, or decode greedily."
        )

    set_output_embeddings = set_input_embeddings

    def first_layers(self, layers: int) -> Any:
        """The compiled model of this one's first layers, which drafts as this one's settings say.

        Raises:
            InputError: it has no such layers, or can't be cut.
        """
        made = self.qfpass_early_exits.of(layers, self.qfpass_decoder)
        made.generation_config = copy.deepcopy(self.generation_config)
        made.generation_config.assistant_early_exit = None
        return made

    def most_candidates(self, session: Session, input_ids: torch.Tensor) -> int:
        """How many drafted tokens the session can read after input_ids [1, S] and take back."""
        decoder = self.qfpass_decoder
        context = decoder.sizes.context_length if decoder.config.overflow == "error" else None
        return most_drafted(session, unread_columns(session, input_ids), context)

    def _write_drafts(self, session: Session, args: Sequence[Any], named: Mapping[str, Any]) -> None:
        """Let a session follow a text whose drafts are this model's, and whose end generate changes."""
        most, _ = most_taken_back(session.sizes, self.qfpass_decoder.whole_layers)
        session.take_back, session.begins_anew = min(most, MOST), True
        ids = _given_ids(args, named)
        if ids is not None and session.tokens_seen:
            forget_what_differs(session, ids)

    def _refuse(
        self, settings: GenerationConfig, given: GenerationConfig | None, named: dict[str, Any]
    ) -> None:
        """Refuse settings of the caller that a session can't support."""
        refuse_adapter_names(named)
        mode = _mode(settings, named)
        if mode not in MODES:
            possible = ", ".join(mode.value for mode in MODES)
            raise SessionError(
                f"{mode.value} is not possible on a compiled decoder, which gives logits and nothing from "
                f"inside the model. What is possible: {possible}."
            )
        if mode == GenerationMode.ASSISTED_GENERATION:
            refuse_drafts(settings, named)
        if named.get("use_cache", getattr(given, "use_cache", None)) is False:
            raise InputError("use_cache=False has no meaning for a compiled decoder: leave it out.")
        asked = named.get("cache_implementation", getattr(given, "cache_implementation", None))
        if asked is not None and not settings.is_assistant:
            raise InputError(
                f"cache_implementation={asked!r} has no meaning for a compiled decoder, whose cache is a "
                "session: leave it out."
            )

    def _end_with_context(
        self, session: Session, settings: GenerationConfig, args: Sequence[Any], named: dict[str, Any]
    ) -> None:
        """Add a stopping criterion to `named`, so that generate stops at the context length and doesn't fail.

        Nothing is added if texts may go past it, or if the caller gives stopping criteria by position.
        """
        decoder = self.qfpass_decoder
        if decoder.config.overflow != "error" or len(args) > 3:
            return
        rests = settings.eos_token_id is not None
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


def _mode(settings: GenerationConfig, named: Mapping[str, Any]) -> GenerationMode:
    return settings.get_generation_mode(named.get("assistant_model"))


def _without_cache_settings(given: GenerationConfig) -> GenerationConfig:
    """The same settings without transformers' chunked prefill, and without a draft's kind of cache."""
    if given.prefill_chunk_size is None and given.cache_implementation is None:
        return given
    given = copy.deepcopy(given)
    given.prefill_chunk_size = given.cache_implementation = None
    return given


def _given_ids(args: Sequence[Any], named: Mapping[str, Any]) -> torch.Tensor | None:
    """The ids [B, S] that generate was given, None if there are none."""
    ids = next((x for x in (*args[:1], named.get("inputs"), named.get("input_ids")) if x is not None), None)
    return ids if isinstance(ids, torch.Tensor) and ids.dim() == 2 else None


@contextmanager
def _with_unread_columns(session: Session, args: Sequence[Any], named: Mapping[str, Any]) -> Iterator[None]:
    """A context in which `session.unread` tells which of generate's ids are not yet read."""
    ids, mask, embeddings = _given_ids(args, named), named.get("attention_mask"), named.get("inputs_embeds")
    if isinstance(embeddings, torch.Tensor) and embeddings.dim() == 3:
        # No session knows the ids of embeddings, so these are always new.
        given = 0 if ids is None else ids.shape[1]
        ahead = given - embeddings.shape[1] - session.columns
        session.unread = Unread(ahead, "nowhere" if mask is None else "as masked")
    elif ids is not None:
        ahead = ids.shape[1] - columns_to_read(session, ids, mask) - session.columns
        if mask is not None:
            session.unread = Unread(ahead, "as masked")
        elif session.tokens_seen and len(ids) == 1:  # before beams or samples repeat it
            session.unread = Unread(ahead, "nowhere")
        else:
            session.unread = Unread(ahead, "as guessed")
    elif embeddings is None:  # then generate begins with a token of its own
        session.unread = Unread(-session.columns, "as guessed")
    try:
        yield
    finally:
        session.unread = None
