"""Attach: the compiled decoder in the place of the model that went in, called and generated from alike."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from ..errors import InputError, QFPassError
from .decoder import Decoder, wanted_indices
from .inputs import check_inputs, check_session
from .session import Session

_UNSUPPORTED = "is not something that a compiled decoder computes: leave it out or use the original model."


class CompiledDecoder(nn.Module):
    """A compiled decoder that is called like the model it was made from."""

    qfpass_decoder: Decoder
    qfpass_original: nn.Module

    def session(self) -> Session:
        """A new, empty session: pass it as `past_key_values` to go on where it stands."""
        return self.qfpass_decoder.session()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Session | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        return_dict: bool | None = None,
        **unsupported: Any,
    ) -> Any:
        """Read ids [B, S] int64 and give their logits [B, S or fewer, V].

        Args:
            attention_mask: [B, tokens seen + S] or [B, S], all ones.
            position_ids: [B, S]; they must go on from the tokens seen, and are checked.
            past_key_values: a session of this model; without one the call starts afresh.
            logits_to_keep: 0 for every token's logits, n for the last n, or ascending indices.

        Raises:
            InputError, SessionError: with what is wrong and what to do.
        """
        for name, value in unsupported.items():
            if value is not None and value is not False:
                raise InputError(f"{name}= {_UNSUPPORTED}")
        decoder = self.qfpass_decoder
        session = past_key_values if past_key_values is not None else decoder.session()
        check_session(decoder, session)
        ids = check_inputs(decoder, session, input_ids, attention_mask, position_ids)
        logits = decoder.read(ids, session, wanted_indices(logits_to_keep, ids.shape[1]))
        if not self._gives_object(return_dict):
            return logits
        kept = None if use_cache is False else session
        return CausalLMOutputWithPast(logits=logits, past_key_values=kept)  # type: ignore[arg-type]

    def train(self, mode: bool = True) -> "CompiledDecoder":
        """Refused: the layers are the original's own, and an evicting graph has no gradient."""
        if mode:
            raise QFPassError("a compiled decoder can't be trained: train the original, then compile again.")
        return self

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "CompiledDecoder":
        """What `.to()`, `.cuda()` and `.half()` call: refused if it would change the shared parameters."""
        decoder = self.qfpass_decoder
        before = torch.empty(0, dtype=decoder.dtype, device=decoder.device)
        after = fn(before)
        if (after.device, after.dtype) != (before.device, before.dtype):
            raise QFPassError(
                f"a compiled decoder stays on {before.device} in {before.dtype}: its parameters are the "
                "original's. Move or cast the original, then compile again."
            )
        return self

    def _gives_object(self, return_dict: bool | None) -> bool:
        return True


class CompiledPlainModel(CompiledDecoder):
    """A compiled decoder that didn't come from transformers."""

    def __init__(self, model: nn.Module, decoder: Decoder, gives_tensor: bool) -> None:
        super().__init__()
        self.qfpass_original = model
        self.qfpass_decoder = decoder
        self._gives_tensor = gives_tensor
        self.training = False

    def _gives_object(self, return_dict: bool | None) -> bool:
        return not self._gives_tensor


class CompiledGeneration(CompiledDecoder):
    """What a compiled transformers model adds to its own class; `generate` is transformers' own."""

    def generate(self, *args: Any, past_key_values: Session | None = None, **kwargs: Any) -> Any:
        """transformers' generate over a session: the one given, or a new one for this call."""
        session = past_key_values if past_key_values is not None else self.session()
        check_session(self.qfpass_decoder, session)
        kwargs["past_key_values"] = session
        return super().generate(*args, **kwargs)  # type: ignore[misc]


def attach(model: nn.Module, decoder: Decoder, gives_tensor: bool) -> CompiledDecoder:
    """A model that shares `model`'s parameters and runs `decoder`; `model` itself is not changed."""
    if not isinstance(model, PreTrainedModel):
        return CompiledPlainModel(model, decoder, gives_tensor)
    original = type(model)
    bases = (CompiledGeneration, original)
    compiled = copy.copy(model)
    for name in ("_modules", "_parameters", "_buffers"):
        compiled.__dict__[name] = dict(model.__dict__[name])
    compiled.__class__ = type(f"Compiled{original.__name__}", bases, {"__module__": __name__})
    compiled.__dict__["qfpass_decoder"] = decoder
    compiled.__dict__["qfpass_original"] = model
    return compiled  # type: ignore[return-value]


def decoder_of(model: nn.Module) -> Decoder:
    """The decoder inside what `qfpass.compile` returned."""
    decoder = getattr(model, "qfpass_decoder", None)
    if not isinstance(decoder, Decoder):
        raise QFPassError(f"{type(model).__name__} was not made by qfpass.compile.")
    return decoder
