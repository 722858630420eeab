"""Refuse a model whose calls leave something behind that changes what a later call computes."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from ..capture.decoder_call import logits_of, run_decoder
from ..capture.left_behind import put_back
from ..capture.module_snapshot import Snapshot
from ..capture.ranks import Ranks
from ..errors import VerificationError
from ..graph.captured import Captured
from .length_dependence import LONGEST
from .rounding import relative_difference, tolerance_of
from .text import original_logits, positions_of, wait_for_all

SHORT = 2  # tokens of a text that follows a longer one


def require_repeatable(model: nn.Module, captured: Captured, ids: torch.Tensor, ranks: Ranks) -> None:
    """Raise if a text's logits depend on the calls before.

    The first tokens of `ids` [B, S] are read again after all of `ids`, which are then read again after them.
    Then the numbers and flags that a traced call had changed are set to what a longer text may leave there.

    Raises:
        VerificationError: a text's logits differ; the message names the attributes that calls change.
    """
    tolerance, texts = tolerance_of(captured.dtype), (ids[:, :SHORT], ids)
    expected = [original_logits(model, text) for text in texts]

    def require_same(now: torch.Tensor, text: int, changed: list[str]) -> None:
        difference = relative_difference(now, expected[text])
        if not ranks.all(difference <= tolerance):
            raise _not_repeatable(type(model).__name__, difference, changed)

    with put_back(model):
        before = Snapshot(model)
        for text in (1, 0, 1):
            require_same(_run(model, texts[text]), text, before.differences())
    for path in captured.left_behind:
        for value in _values_for(model, path):
            for text, now in enumerate(_logits_after(model, path, value, texts)):
                require_same(now, text, [path])


@torch.no_grad()
def _run(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The logits for `ids`; what the call leaves behind stays."""
    wait_for_all(model)
    return logits_of(run_decoder(model, ids, positions_of(ids)))


def _values_for(model: nn.Module, path: str) -> Iterator[int | bool]:
    """Values that a call may leave in the attribute at `path`: both flags, or 0 and a large number."""
    module, name = _place(model, path)
    is_flag = isinstance(getattr(module, name, None), bool)
    yield from (False, True) if is_flag else (0, LONGEST)


def _logits_after(
    model: nn.Module, path: str, value: int | bool, texts: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The logits of texts where the attribute at `path` holds `value`; empty if the model doesn't run then.

    It needn't run: a call that leaves this number may leave a table of that length beside it.
    """
    with put_back(model):
        module, name = _place(model, path)
        setattr(module, name, value)
        try:
            return [_run(model, text) for text in texts]
        except Exception:  # the model's own code may raise anything
            return []


def _place(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds the attribute at `path`, and the attribute's name."""
    parent, _, name = path.rpartition(".")
    return model.get_submodule(parent), name


def _not_repeatable(name: str, difference: float, changed: list[str]) -> VerificationError:
    what = f": each call changes its {', '.join(changed[:3])}" if changed else ", as if by chance"
    return VerificationError(
        f"{name} gives other logits for the same text when it is called again, by {difference:.1e} of the "
        f"largest{what}. A session can't carry that: what a call computes must depend on its inputs alone."
    )
