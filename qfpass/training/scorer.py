"""The parameters that training learns, and their conversion to filters."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..attention.find import Attention
from ..filters.trained_filters import TrainedFilters

FORGETTING = 0.8  # initially: deviations of the score that a key loses while a token per slot is read
SIZES = (0.25, 0.5, 1.0, 2.0, 4.0)  # relative sizes of layers: few, since each size is compiled


class Scorer(nn.Module):
    """Scores the keys of L layers with equal head counts and widths, on standardised inputs.

    Buffers: `mean` and `deviation` [L, P] of a token's keys and values, P = Hkv * (D + Dv); `norm_mean` and
    `norm_deviation` [L, Hkv] of the values' log norms. Parameters: `weight` [L, Hkv, P]; `norm_weight` and
    `forgetting` [L, Hkv]; `size` [L], the logits of the layers' shares of the slots.
    """

    mean: torch.Tensor
    deviation: torch.Tensor
    norm_mean: torch.Tensor
    norm_deviation: torch.Tensor

    def __init__(self, pairs: Sequence[torch.Tensor], norms: Sequence[torch.Tensor]) -> None:
        """Take means and deviations from `pairs` [tokens, P] and `norms` [Hkv, tokens] of each layer."""
        super().__init__()
        layers, width, heads = len(pairs), pairs[0].shape[1], norms[0].shape[0]
        self.register_buffer("mean", torch.stack([x.mean(0) for x in pairs]))
        self.register_buffer("deviation", torch.stack([x.std(0) for x in pairs]).clamp_min(1e-5))
        self.register_buffer("norm_mean", torch.stack([x.mean(1) for x in norms]))
        self.register_buffer("norm_deviation", torch.stack([x.std(1) for x in norms]).clamp_min(1e-5))
        self.weight = nn.Parameter(torch.zeros(layers, heads, width))
        self.norm_weight = nn.Parameter(torch.ones(layers, heads))
        self.forgetting = nn.Parameter(torch.full((layers, heads), FORGETTING))
        self.size = nn.Parameter(torch.zeros(layers))

    def forward(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """Scores [Hkv, n] of one layer's key and value [1, Hkv, n, .], without what they lose by age."""
        pairs = (pairs_of(key, value) - self.mean[layer]) / self.deviation[layer]
        norms = (log_norms(value) - self.norm_mean[layer][:, None]) / self.norm_deviation[layer][:, None]
        return self.weight[layer] @ pairs.T + self.norm_weight[layer][:, None] * norms

    @property
    def shares(self) -> torch.Tensor:
        """The slots of each layer over their mean, [L]."""
        return self.size.softmax(0) * len(self.size)

    @torch.no_grad()
    def round_shares(self) -> None:
        """Round the shares to `SIZES` times a common factor, with mean 1, and make `size` untrainable."""
        shares, sizes = self.shares.cpu(), torch.tensor(SIZES)
        best: tuple[float, torch.Tensor] | None = None
        for factor in torch.linspace(0.4, 2.0, 161):
            nearest = (shares.log()[:, None] - (sizes * factor).log()).abs().argmin(1)
            rounded = sizes[nearest] * factor
            error = float((rounded.mean() - 1).abs())
            if best is None or error < best[0]:
                best = error, rounded / rounded.mean()
        assert best is not None
        self.size.copy_(best[1].log())
        self.size.requires_grad_(False)

    @torch.no_grad()
    def filters(
        self, layers: Sequence[Attention], scored: Sequence[int], source: dict[str, Any]
    ) -> TrainedFilters:
        """The filters of every attention; attentions that aren't `scored` (those with a window) get zeros."""
        made = [torch.zeros(a.kv_heads, self.weight.shape[2] + 2) for a in layers]
        shares = [1.0] * len(layers)
        for i, index in enumerate(scored):
            weight = self.weight[i] / self.deviation[i]
            norm = (self.norm_weight[i] / self.norm_deviation[i])[:, None]
            made[index] = torch.cat([weight, norm, self.forgetting[i].clamp_min(0)[:, None]], 1).cpu()
            shares[index] = round(float(self.shares[i]), 6)
        return TrainedFilters(tuple(made), tuple(shares), source)


def pairs_of(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Each token's keys and values [1, Hkv, n, .] as one row, head by head: [n, Hkv * (D + Dv)] float32."""
    return torch.cat([key, value], -1)[0].transpose(0, 1).flatten(1).float()


def log_norms(value: torch.Tensor) -> torch.Tensor:
    """The logs of the norms of value [1, Hkv, n, Dv]: [Hkv, n] float32."""
    return torch.linalg.vector_norm(value[0].float(), dim=-1).clamp_min(1e-12).log()
