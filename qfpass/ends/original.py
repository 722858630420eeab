"""The original, called with embeddings in the place of ids or asked for its hidden states."""

import inspect
from typing import Any

import torch
from torch import nn

from ..capture.decoder_call import logits_of, run_decoder
from ..capture.kinds import kind_of
from ..capture.left_behind import put_back
from ..errors import InputError
from ..sessions.tokens import Tokens
from ..upstream.heads import backbone_of


def require_embeddings(model: nn.Module) -> None:
    """Raise InputError if `model`'s own forward takes no embeddings, or doesn't tell those of ids."""
    takes_them = "inputs_embeds" in inspect.signature(model.forward).parameters
    if not takes_them or not hasattr(model, "get_input_embeddings"):
        raise InputError(f"{type(model).__name__} itself takes no inputs_embeds: give input_ids.")


@torch.no_grad()
def embeddings_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The embeddings [B, S, E] of ids [B, S], as the model takes them for `inputs_embeds`.

    Raises:
        InputError: the model has a table for each of several ids of a token.
    """
    table = model.get_input_embeddings()
    if isinstance(table, nn.ModuleList):
        raise InputError(f"{type(model).__name__} embeds ids by several tables: give input_ids.")
    embeddings: torch.Tensor = table(ids)
    return embeddings


@torch.no_grad()
def hidden_states_of(model: nn.Module, tokens: Tokens, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """All hidden states [B, S, E] of the original for tokens at positions [B, S].

    Raises:
        InputError: it gives none.
    """
    body = backbone_of(model) if kind_of(model) == "scores" else model
    states = None
    if _takes_keywords(body, "output_hidden_states"):
        with put_back(model):
            output = run_decoder(body, **_given(tokens, positions), output_hidden_states=True)
        states = getattr(output, "hidden_states", None)
    if not states:
        raise InputError(f"{type(model).__name__} itself gives no hidden_states: leave the argument out.")
    return tuple(states)


@torch.no_grad()
def output_of(model: nn.Module, tokens: Tokens, positions: torch.Tensor) -> torch.Tensor:
    """The original's output [B, S, V], as `logits_of` finds it, for tokens at positions [B, S]."""
    with put_back(model):
        return logits_of(run_decoder(model, **_given(tokens, positions)))


def _given(tokens: Tokens, positions: torch.Tensor) -> dict[str, Any]:
    given: dict[str, Any] = {"ids": tokens.ids, "positions": positions}
    if tokens.embeddings is not None:
        given |= {"ids": None, "inputs_embeds": tokens.embeddings.clone()}  # CTRL multiplies them in place
    if tokens.axes is not None:
        given["positions"] = tokens.axes.permute(2, 0, 1)
    return given


def _takes_keywords(model: nn.Module, name: str) -> bool:
    parameters = inspect.signature(model.forward).parameters
    return name in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())
