"""What the calls of a model read while it confirms drafts, and whether its tokens are its choices."""

from types import TracebackType
from typing import Any

import torch
from torch import nn


def with_end(model: nn.Module) -> nn.Module:
    """A tiny model that drafts five tokens, however unsure; older versions need an end of text."""
    settings = model.generation_config
    settings.eos_token_id = settings.pad_token_id = 0
    settings.assistant_confidence_threshold = 0.0
    settings.num_assistant_tokens = 5
    return model


class Calls:
    """The calls of a model inside `with`: how many columns its session had read, and how many ids it got."""

    def __init__(self, model: nn.Module) -> None:
        self.seen: list[tuple[int, int]] = []
        self._handle = model.register_forward_pre_hook(self._note, with_kwargs=True)

    def __enter__(self) -> "Calls":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()

    def _note(self, model: nn.Module, args: Any, named: dict[str, Any]) -> None:
        session = named.get("cache") or named["past_key_values"]
        columns = session.columns if hasattr(session, "columns") else session.get_seq_length()
        self.seen.append((columns, named["input_ids"].shape[1]))

    def pieces(self, out: torch.Tensor) -> list[tuple[int, int, int]]:
        """Of each call: its first column, how many it read, and the end of those that are in `out` [1, S]."""
        ends = [start for start, _ in self.seen[1:]] + [out.shape[1] - 1]
        return [(*call, end) for call, end in zip(self.seen, ends, strict=True)]

    def confirms_some(self, out: torch.Tensor) -> bool:
        """Whether some drafts were confirmed and some not."""
        later = self.pieces(out)[1:]
        confirmed = any(end - start > 1 for start, _, end in later)
        return confirmed and any(end - start < read for start, read, end in later)


def require_choices(
    model: nn.Module, pieces: list[tuple[int, int, int]], out: torch.Tensor, prompt: int, take_back: int
) -> None:
    """Require that what follows the prompt in `out` [1, S] is the model's choice, read in these pieces.

    Tokens that were taken back leave no trace: others in their place give the same choices.
    """
    session = model.session(take_back=take_back)
    assert pieces[-1][2] > session.sizes.slots
    for start, read, end in pieces:
        other = out[:, start:end].new_full((1, read - (end - start)), 7)
        logits = model(torch.cat([out[:, start:end], other], 1), past_key_values=session).logits
        session.crop(-other.shape[1]) if other.shape[1] else None
        chosen = logits[:, : end - start].argmax(-1)
        from_here = max(start, prompt - 1)
        assert torch.equal(chosen[:, from_here - start :], out[:, from_here + 1 : end + 1])
