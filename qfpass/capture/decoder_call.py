"""How a decoder is called: its arguments, the logits in what it returns, and its context length."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import CaptureError
from ..graph.devices import devices_of
from ..upstream.dispatched import inside_hook
from ..upstream.heads import backbone_of, is_pretrained, is_sequence_classifier
from .equal_layers import forwards_replaced
from .kinds import scores_head
from .left_behind import put_back

_ALWAYS = {"use_cache": False, "return_dict": True}  # passed if forward accepts them
_ONE_ROW = {"input_pos", "cache_position"}  # arguments that take positions [S], one row for the whole batch


def call_decoder(model: nn.Module, ids: torch.Tensor, positions: torch.Tensor) -> Any:
    """The output of `model` for token ids [B, S] at positions [B, S]; what it leaves in modules is put back.

    See `run_decoder`.
    """
    with put_back(model):
        return run_decoder(model, ids, positions)


def run_decoder(model: nn.Module, ids: torch.Tensor | None, positions: torch.Tensor, **asked: Any) -> Any:
    """The output of `model` for token ids [B, S] at positions [B, S], with further arguments.

    Positions are passed as `position_ids`, else as an argument that has no default and "pos" in its name. A
    model with neither argument counts positions itself. Of a sequence classifier it is the scores of every
    token, where its own forward gives those of one. A model on several devices gives it where the ids lie.
    """
    if is_pretrained(model) and is_sequence_classifier(model):
        return scores_head(model)(logits_of(run_decoder(backbone_of(model), ids, positions, **asked)))
    accepted = inspect.signature(model.forward).parameters
    keywords: dict[str, Any] = {name: value for name, value in _ALWAYS.items() if name in accepted}
    name = _positions_argument(accepted)
    if name is not None:
        keywords[name] = positions[0] if name in _ONE_ROW else positions
    if len(devices_of(model)) < 2:
        return model(ids, **keywords, **asked)
    with _inputs_left_in_place(model):
        return _moved_to(positions.device, model(ids, **keywords, **asked))


def _moved_to(device: torch.device, output: Any) -> Any:
    """A model's output with all tensors on a device."""
    if isinstance(output, torch.Tensor):
        return output.to(device)
    if isinstance(output, (tuple, list)):
        return type(output)(_moved_to(device, each) for each in output)
    if isinstance(output, dict):  # as transformers' outputs are
        for name, value in output.items():
            output[name] = _moved_to(device, value)
    return output


@contextmanager
def _inputs_left_in_place(model: nn.Module) -> Iterator[None]:
    """Inside, accelerate's hook around a whole model leaves its inputs with the embeddings."""
    own = inside_hook(model)
    if own is None:
        yield
        return
    with forwards_replaced({"model": model}, lambda *_: lambda *args, **keywords: own(*args, **keywords)):
        yield


def _positions_argument(accepted: Mapping[str, inspect.Parameter]) -> str | None:
    if "position_ids" in accepted:
        return "position_ids"
    required = (name for name, parameter in accepted.items() if parameter.default is parameter.empty)
    return next((name for name in required if "pos" in name), None)


def logits_of(output: Any) -> torch.Tensor:
    """The logits [B, S, V] in a decoder's output: its `.logits`, or the output or its first element.

    Of a model without a head, the last hidden values [B, S, E].

    Raises:
        CaptureError: that is no tensor of three dimensions.
    """
    logits = getattr(output, "logits", getattr(output, "last_hidden_state", output))
    if isinstance(logits, tuple) and logits:
        logits = logits[0]
    if not isinstance(logits, torch.Tensor) or logits.dim() != 3:
        raise CaptureError(
            f"the model returned {type(output).__name__}, not logits [batch, tokens, vocabulary] or an "
            "object with such .logits: wrap it in a module that does."
        )
    return logits


def own_context_length(model: nn.Module) -> int | None:
    """The context length in tokens that a model's config states; None if it states none."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    length = getattr(text, "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 1 else None


class LogitsWrapper(nn.Module):
    """A model as a module (input_ids, position_ids) -> logits.

    What a call leaves in the model's modules is put back.

    Attributes:
        left_behind: the paths of the numbers and flags that calls had changed.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.left_behind = set[str]()  # torch.export puts other attributes back after a trace, but no sets

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        with put_back(self.model) as held:
            logits = logits_of(run_decoder(self.model, input_ids, position_ids))
            self.left_behind.update(held.changed_numbers())
        return logits
