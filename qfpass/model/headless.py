"""Compiled transformers models that don't predict tokens: without a head, or for sequence classification."""

from typing import Any

import torch

from ..capture.kinds import Kind
from ..errors import InputError
from ..sessions.session import Session
from ..upstream.cache import hidden_output, scores_output
from ..upstream.heads import padding_id_of
from .compiled_decoder import CompiledDecoder


class CompiledBackbone(CompiledDecoder):
    """A compiled model without a head, such as AutoModel's; it returns `last_hidden_state` [B, S, E]."""

    def output_of(self, values: torch.Tensor, session: Session | None) -> Any:
        """The output object with the last hidden values [B, S, E], zeros for padding on the left."""
        return hidden_output(values, session)


class CompiledClassifier(CompiledDecoder):
    """A compiled sequence classifier; it returns one token's scores a row, as `logits` [B, classes]."""

    def forward(  # type: ignore[override]  # like the original it knows no logits_to_keep
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Session | None = None,
        cache: Session | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        **unsupported: Any,
    ) -> Any:
        """The scores of the last token of each row of ids [B, S] that isn't the padding id.

        Of embeddings [B, S, E] it is the last column.

        The arguments are those of `CompiledDecoder.forward`. Without a padding id in the config it is the
        last column, and there can be one row only, as in the original.

        Raises:
            InputError, SessionError: an argument is wrong; the message says what to do.
        """
        given = unsupported.get("inputs_embeds") if input_ids is None else input_ids
        if isinstance(given, torch.Tensor) and given.dim() > 1 and given.numel():
            chosen = self._last_tokens(given)
            unsupported["logits_to_keep"], inverse = chosen.unique(return_inverse=True)
        out = super().forward(
            input_ids, attention_mask, position_ids, past_key_values, cache, use_cache,
            return_dict=True, **unsupported,
        )  # fmt: skip
        rows = torch.arange(len(out.logits), device=out.logits.device)
        out.logits = out.logits[rows, inverse.to(rows.device)]
        if return_dict is None:
            config: Any = self.config
            return_dict = config.return_dict
        return out if return_dict else out.to_tuple()

    def _last_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        """The column [B] of each row's last token that isn't padding; column 0 if there is none.

        Embeddings [B, S, E] show no padding: it is the last column, as in the original.
        """
        padding = padding_id_of(self)
        if padding is None:
            if len(ids) > 1:
                raise InputError(
                    f"a batch of {len(ids)} rows needs a padding id, by which each row's last token is "
                    "found: set config.pad_token_id before compile, or give one row."
                )
            return torch.tensor([ids.shape[1] - 1])
        if ids.is_floating_point():
            return torch.full((len(ids),), ids.shape[1] - 1)
        columns = torch.arange(ids.shape[1], device=ids.device)
        return (columns * (ids != padding)).argmax(-1).cpu()

    def output_of(self, values: torch.Tensor, session: Session | None) -> Any:
        """The output object with scores [B, n, classes]."""
        return scores_output(values, session)


BY_KIND: dict[Kind, type[CompiledDecoder]] = {"hidden": CompiledBackbone, "scores": CompiledClassifier}
