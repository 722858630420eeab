"""The text that a proof reads: random token ids, and ids that the model itself finds likely."""

import torch
from torch import nn

from ..capture.decoder_call import call_decoder, logits_of
from ..capture.ranks import Ranks
from ..graph.captured import Captured, id_limit

ROUNDS = 3  # in which the likely tokens are chosen


def random_text(captured: Captured, tokens: int) -> torch.Tensor:
    """Random ids [B, tokens] that the model takes."""
    generator = torch.Generator().manual_seed(0)
    shape = (captured.batch or 1, tokens)
    return torch.randint(id_limit(captured.module), shape, generator=generator).to(captured.device)


def with_likely_end(model: nn.Module, ids: torch.Tensor, first: int, limit: int) -> torch.Tensor:
    """The ids [B, S], where all after the `first` ones are replaced by ids that the model finds likely there.

    They are below `limit`. A model without logits gives others, which depend on the text before as well.

    All are chosen at once, in `ROUNDS` rounds: each is the likeliest after the tokens of the round before, as
    in Jacobi decoding (Santilli et al. 2023, arXiv 2305.10427). One by one would take S - first readings.
    """
    text = ids
    for _ in range(ROUNDS):
        likely = original_logits(model, text)[:, first - 1 : -1, :limit].argmax(-1)
        text = torch.cat([ids[:, :first], likely.to(ids.dtype)], dim=1)
    return text


@torch.no_grad()
def original_logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """The model's own logits [B, S, V] for ids [B, S], without a cache."""
    wait_for_all(model)
    return logits_of(call_decoder(model, ids, positions_of(ids)))


def wait_for_all(model: nn.Module) -> None:
    """Wait until all processes that run `model` together are here.

    Stages of a pipeline send to each other by calls that wait for one that has failed as long as their
    group's own timeout says; here they wait no longer than `Ranks.in_step` lets them.
    """
    Ranks.of_model(model).together(lambda: None)


def positions_of(ids: torch.Tensor) -> torch.Tensor:
    """The positions [B, S] of ids [B, S] that start a text."""
    return torch.arange(ids.shape[1], device=ids.device).expand(len(ids), -1)
