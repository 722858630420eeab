"""What a compiled transformers model adds to its own class for `generate` to run on sessions.

Imports transformers' generation, so that only `attach` imports this, for a model of transformers.
"""

from typing import Any

from transformers import GenerationConfig
from transformers.generation import GenerationMode

from ..errors import InputError, SessionError
from ..upstream.cache import as_cache, give_both_names, one_of
from ..upstream.generate import GenerationSteps, generation_settings
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

        Padding goes to the left or the right of a row. A row that has ended reads nothing more.

        Raises:
            InputError, SessionError: settings that a session can't go by; nothing has been read.
        """
        given = generation_config if len(args) < 2 else args[1]
        self._refuse(given, kwargs)
        session = one_of(past_key_values, cache)
        if session is None:
            session = self.session()
        check_session(self.qfpass_decoder, session)
        kwargs |= self._overrides(kwargs)
        if generation_config is not None:
            kwargs["generation_config"] = generation_config
        with session.in_use():
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

    def _overrides(self, named: dict[str, Any]) -> dict[str, Any]:
        """What the checkpoint's own settings say of a cache, and a session doesn't go by."""
        own: Any = self.generation_config
        overrides: dict[str, Any] = {}
        if getattr(own, "use_cache", None) is False:
            overrides["use_cache"] = True
        if getattr(own, "cache_implementation", None) is not None:
            overrides["cache_implementation"] = None
        return overrides
