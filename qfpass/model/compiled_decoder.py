"""CompiledDecoder: the object that `qfpass.compile` returns, called like the model it was made from."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..decoder.decoder import Decoder
from ..decoder.read import read
from ..errors import InputError, QFPassError
from ..packages.export import export_decoder
from ..sessions.session import Session
from ..upstream.cache import cache_argument, causal_output
from ..upstream.module_object import SharedParameters
from .adapters import refuse_adapter_names
from .changes import DecoderVersions
from .check_inputs import check_inputs, check_session, wanted_indices
from .loss import check_labels, loss_of, with_loss
from .pool import Pool
from .returned import MakeOutput

_UNSUPPORTED = "is not something that a compiled decoder computes: leave it out or use the original model."


class CompiledDecoder(SharedParameters):
    """A compiled decoder that is called like its original model and shares the original's parameters."""

    qfpass_decoder: Decoder
    qfpass_original: nn.Module
    qfpass_changes: DecoderVersions

    def follow_changes(self) -> Decoder:
        """The decoder of the original model as it is now; this object uses it from now on.

        Raises:
            QFPassError: the original can't be compiled as it is now.
        """
        self.qfpass_decoder = self.qfpass_changes.current()
        return self.qfpass_decoder

    def session(self, budget: int | None = None, take_back: int = 0) -> Session:
        """A new, empty session; pass it as `past_key_values` in each call on the same texts.

        Args:
            budget: slots per key/value head, at most those compiled for; the session then gives the results
                of a model compiled with this budget.
            take_back: how many of the newest tokens `session.crop` can take back, at most `recent`.

        Raises:
            ConfigError, SessionError: the model can't have a session of this budget, or one that takes so
                many tokens back.
        """
        return self.follow_changes().session(budget, take_back)

    def pool(self, rows: int) -> Pool:
        """Room for so many conversations, allocated at once, that are stepped together; see `Pool`.

        Raises:
            ConfigError: no valid number of rows, or one that this decoder wasn't exported for.
        """
        return Pool(self.follow_changes(), rows, self.qfpass_changes)

    def export(self, folder: str | Path, *, rows: int = 1, weights: bool = True) -> None:
        """Write this decoder into a new folder, from which `qfpass.load` runs it without compiling anything.

        Its graphs are compiled ahead of time by AOTInductor, which takes some minutes. The folder runs on the
        same kind of processor, with the same versions of torch and qfpass.

        Args:
            rows: calls have one row or this many.
            weights: save a transformers model's weights and config too, so that `load` needs no model.

        Raises:
            PackageError: it can't be exported: backends other than Inductor, kernels and scores of the
                caller's own, `overflow="rerotate"`, or a folder that isn't new.
        """
        export_decoder(self.qfpass_original, self.follow_changes(), folder, rows, weights)

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
        inputs_embeds: torch.Tensor | None = None,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        labels: torch.Tensor | None = None,
        num_items_in_batch: int | torch.Tensor | None = None,
        **unsupported: Any,
    ) -> Any:
        """The model's output for ids [B, S], with logits [B, S or fewer, V]; the session is updated.

        The first call with embeddings and the first that asks for hidden states compile graphs of their own.

        Args:
            attention_mask: [B, S], or [B, earlier columns + S]: 1 for tokens, 0 for padding, which goes to
                the left or the right of a row's tokens and is never stored, attended or counted. Padding
                on the right has the logits of the row's last token, padding on the left has zeros.
            position_ids: [B, S]; they are only checked: they must continue each row's positions.
            past_key_values, cache: a session of this model, by either name (transformers 5.24 renamed it);
                without one the call uses a new session.
            inputs_embeds: [B, S, E], in the place of ids, as the original takes them.
            output_hidden_states: True for all of the original's hidden states, or the number of one, or a
                list of numbers, such as [-1]; `hidden_states` then holds these, each [B, S, E].
            logits_to_keep: 0 for every token's logits, n for the last n, or indices in any order.
            labels: [B, S], the ids to be predicted, -100 for none: the output has the original's `loss`.
            num_items_in_batch: what the loss is divided by, instead of the number of labels.

        Raises:
            InputError, SessionError: an argument is wrong; the message says what to do.
        """
        refuse_adapter_names(unsupported)
        for name, value in unsupported.items():
            if value is not None and value is not False and not _is_default(name, value):
                raise InputError(f"{name}= {_UNSUPPORTED}")
        decoder = self.follow_changes()
        session = cache_argument(past_key_values, cache)
        if session is None:
            session = decoder.session()
        check_session(decoder, session, self.qfpass_changes)
        hidden = decoder.by_ends.others.hidden_numbers(output_hidden_states) if output_hidden_states else ()
        with session.in_use():
            tokens, spans = check_inputs(
                decoder, session, input_ids, attention_mask, position_ids, inputs_embeds
            )
            kept = wanted_indices(logits_to_keep, tokens.columns)
            if labels is not None:
                check_labels(self, labels, (len(spans), tokens.columns), spans, len(kept))
            wanted = torch.arange(tokens.columns) if hidden else kept
            values = read(decoder, session, tokens._replace(hidden=hidden), spans, wanted)
        states = None
        if hidden:
            *states, values = decoder.by_ends.others.split(values, hidden)
            values = values[:, kept.to(values.device)]
        out = self.returned(values, None if use_cache is False else session, return_dict, states)
        if labels is None:
            return out
        return with_loss(out, loss_of(self, values, labels, num_items_in_batch))

    def returned(
        self,
        logits: torch.Tensor,
        session: Session | None,
        return_dict: bool | None,
        hidden_states: Sequence[torch.Tensor] | None = None,
    ) -> Any:
        """What the original would return: an output object, or a tuple if `return_dict` is False."""
        if return_dict is None:
            return_dict = getattr(getattr(self, "config", None), "return_dict", True)
        out = self.output_of(logits, session)
        if hidden_states is not None:
            out["hidden_states"] = tuple(hidden_states)  # as an item, so that a tuple holds it too
        return out.to_tuple() if return_dict is False and hasattr(out, "to_tuple") else out

    def output_of(self, values: torch.Tensor, session: Session | None) -> Any:
        """The output object that holds what the graphs give, [B, S or fewer, V]."""
        return causal_output(values, session)

    def train(self, mode: bool = True) -> "CompiledDecoder":
        """Refuse training mode, since the layers are the original's and an evicting graph has no gradient.

        Raises:
            QFPassError: `mode` is True.
        """
        if mode:
            raise QFPassError("a compiled decoder can't be trained: train the original, then compile again.")
        return self

    def refuse_to_become(self, like: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Refuse `.to()`, `.cuda()`, `.half()` and the like if they would change the shared parameters.

        Raises:
            QFPassError: `like`, applied to a tensor, changes its device or dtype.
        """
        decoder = self.qfpass_decoder
        before = torch.empty(0, dtype=decoder.dtype, device=decoder.device)
        after = like(before)
        if (after.device, after.dtype) != (before.device, before.dtype):
            raise QFPassError(
                f"a compiled decoder stays on {before.device} in {before.dtype}: its parameters are the "
                "original's. Move or cast the original, then compile again."
            )

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse `copy` and `pickle`, which call this: compiled code can't leave its process."""
        raise QFPassError(
            "a compiled decoder can't be copied or pickled: save its session with session.save(path), copy "
            "or save the original, which is its attribute qfpass_original, and compile that again."
        )


class CompiledPlainModel(CompiledDecoder):
    """A compiled decoder whose original isn't a transformers model; `like` makes its outputs."""

    def __init__(
        self, model: nn.Module, decoder: Decoder, changes: DecoderVersions, like: MakeOutput
    ) -> None:
        super().__init__()
        self.qfpass_original = model
        self.qfpass_decoder = decoder
        self.qfpass_changes = changes
        self._make_output = like
        self.training = False

    def output_of(self, values: torch.Tensor, session: Session | None) -> Any:
        """Logits as the original returns them: by themselves, in a tuple, or in an object."""
        return self._make_output(values, session)


def _is_default(name: str, value: Any) -> bool:
    """Whether an argument only states the default: many tokenizers return token types that are all 0."""
    return name == "token_type_ids" and isinstance(value, torch.Tensor) and not bool(value.any())


def decoder_of(model: nn.Module) -> Decoder:
    """The decoder inside a model that `qfpass.compile` returned.

    Raises:
        QFPassError: `model` is another model.
    """
    decoder = getattr(model, "qfpass_decoder", None)
    if not isinstance(decoder, Decoder):
        raise QFPassError(f"{type(model).__name__} was not made by qfpass.compile.")
    return decoder
