"""The compiled decoder in the place of the model that went in, called alike."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..errors import InputError, QFPassError
from ..upstream.cache import causal_output, one_of
from ..upstream.module_object import Unmoved
from .changes import Changes
from .decoder import Decoder
from .inputs import check_inputs, check_session, wanted_indices
from .reading import read
from .returned import Returned
from .session import Session

_UNSUPPORTED = "is not something that a compiled decoder computes: leave it out or use the original model."


class CompiledDecoder(Unmoved):
    """A compiled decoder that is called like the model it was made from."""

    qfpass_decoder: Decoder
    qfpass_original: nn.Module
    qfpass_changes: Changes

    def follow_changes(self) -> Decoder:
        """The decoder of the original as it is now, which is this model's from now on.

        Raises:
            QFPassError: it can't be compiled as it is now.
        """
        self.qfpass_decoder = self.qfpass_changes.current()
        return self.qfpass_decoder

    def session(self, budget: int | None = None) -> Session:
        """A new, empty session: pass it as `past_key_values` to go on where it stands.

        Args:
            budget: slots per key/value head, at most those compiled for; the session then does what a model
                compiled with this budget does.

        Raises:
            ConfigError, SessionError: the model can't have such a session.
        """
        return self.follow_changes().session(budget)

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Session | None = None,
        cache: Session | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        **unsupported: Any,
    ) -> Any:
        """Read ids [B, S] int64 and give their logits [B, S or fewer, V].

        Args:
            attention_mask: [B, S], or [B, earlier columns + S]: 1 for tokens, 0 for padding, which goes to
                the left or the right of a row's tokens and is never stored, attended or counted. The logits
                at padding on the right are the row's last token's, on the left they are 0.
            position_ids: [B, S]; they must go on from each row's tokens, and are checked.
            past_key_values, cache: a session of this model, by the name that transformers has for it before
                or from version 5.24; without one the call starts afresh.
            logits_to_keep: 0 for every token's logits, n for the last n, or ascending indices.

        Raises:
            InputError, SessionError: with what is wrong and what to do.
        """
        for name, value in unsupported.items():
            if value is not None and value is not False and not _is_default(name, value):
                raise InputError(f"{name}= {_UNSUPPORTED}")
        decoder = self.follow_changes()
        session = one_of(past_key_values, cache)
        if session is None:
            session = decoder.session()
        check_session(decoder, session, self.qfpass_changes)
        with session.in_use():
            ids, spans = check_inputs(decoder, session, input_ids, attention_mask, position_ids)
            logits = read(decoder, session, ids, spans, wanted_indices(logits_to_keep, ids.shape[1]))
        return self.returned(logits, None if use_cache is False else session, return_dict)

    def returned(self, logits: torch.Tensor, session: Session | None, return_dict: bool | None) -> Any:
        """What the original would return: an object, or without `return_dict` a tuple."""
        if return_dict is None:
            return_dict = getattr(getattr(self, "config", None), "return_dict", True)
        out = causal_output(logits, session)
        return out if return_dict else out.to_tuple()

    def train(self, mode: bool = True) -> "CompiledDecoder":
        """Refused: the layers are the original's own, and an evicting graph has no gradient."""
        if mode:
            raise QFPassError("a compiled decoder can't be trained: train the original, then compile again.")
        return self

    def refuse_to_become(self, like: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """What `.to()`, `.cuda()` and `.half()` ask: refused if it would change the shared parameters."""
        decoder = self.qfpass_decoder
        before = torch.empty(0, dtype=decoder.dtype, device=decoder.device)
        after = like(before)
        if (after.device, after.dtype) != (before.device, before.dtype):
            raise QFPassError(
                f"a compiled decoder stays on {before.device} in {before.dtype}: its parameters are the "
                "original's. Move or cast the original, then compile again."
            )

    def __reduce_ex__(self, protocol: Any) -> Any:
        """What `copy` and `pickle` call: refused, since compiled code stays in its process."""
        raise QFPassError(
            "a compiled decoder can't be copied or pickled: save its session with session.save(path), copy "
            "or save the original, which is its attribute qfpass_original, and compile that again."
        )


class CompiledPlainModel(CompiledDecoder):
    """A compiled decoder that didn't come from transformers."""

    def __init__(self, model: nn.Module, decoder: Decoder, changes: Changes, like: Returned) -> None:
        super().__init__()
        self.qfpass_original = model
        self.qfpass_decoder = decoder
        self.qfpass_changes = changes
        self._like = like
        self.training = False

    def returned(self, logits: torch.Tensor, session: Session | None, return_dict: bool | None) -> Any:
        """What the original would return, whatever it is."""
        return self._like(logits, session)


def _is_default(name: str, value: Any) -> bool:
    """Whether it says what a model assumes anyway: many tokenizers give token types, all 0."""
    return name == "token_type_ids" and isinstance(value, torch.Tensor) and not bool(value.any())


def decoder_of(model: nn.Module) -> Decoder:
    """The decoder inside what `qfpass.compile` returned."""
    decoder = getattr(model, "qfpass_decoder", None)
    if not isinstance(decoder, Decoder):
        raise QFPassError(f"{type(model).__name__} was not made by qfpass.compile.")
    return decoder
