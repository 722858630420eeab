"""Streaming statistics of queries: their Gram matrix and sum per query head, in float64."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .q_filters import QFilters, QFilterSizes

TOKENS_AT_ONCE = 4096
NO_MEAN = 1e-12
"""A mean projection smaller than this share of the root mean square one is float64 rounding: no sign."""


class QueryStatistics:
    """Streaming statistics of every layer's queries, from which Q-Filters are computed.

    Per layer it holds `[query_heads, head_dim, head_dim]` and `[query_heads, head_dim]` float64, whatever
    the number of tokens. The right singular vectors of a head's queries, stacked as Q [tokens, head_dim],
    are the eigenvectors of Q^T Q. So the sum of q q^T is all that the uncentred SVD of Godey et al. 2025
    (arXiv 2503.02812) needs.

    Args:
        layers: the attentions' sizes, in graph order.

    Raises:
        InputError: a layer's query heads are no multiple of its key/value heads.
    """

    def __init__(self, layers: Sequence[QFilterSizes]) -> None:
        for index, layer in enumerate(layers):
            if layer.query_heads % layer.kv_heads:
                raise InputError(
                    f"Layer {index} has {layer.query_heads} query heads for {layer.kv_heads} "
                    "key/value heads: Q-Filters need the same number of query heads for each of them."
                )
        self.layers = tuple(layers)
        self.tokens = [0] * len(self.layers)
        self._grams: list[Tensor | None] = [None] * len(self.layers)
        self._sums: list[Tensor | None] = [None] * len(self.layers)

    @torch.inference_mode(mode=False)  # inference tensors couldn't be updated outside the mode
    def update(self, layer: int, query: Tensor) -> None:
        """Add queries `[batch, query_heads, tokens, head_dim]` of one layer, of any floating dtype.

        They must be as the attention reads them, after rotation and norms, and without padding. Updates
        may come in any order. The sums lie on the device of the layer's first query.

        Raises:
            InputError: there is no such layer, or the query has another shape.
        """
        if not 0 <= layer < len(self.layers):
            raise InputError(f"There is no layer {layer}: it must be 0 to {len(self.layers) - 1}.")
        shape = self.layers[layer]
        if query.ndim != 4 or query.shape[1::2] != (shape.query_heads, shape.head_dim):
            raise InputError(
                f"A query of layer {layer} has the shape {list(query.shape)}, not "
                f"[batch, {shape.query_heads}, tokens, {shape.head_dim}]."
            )
        query = query.detach()
        if query.device.type == "mps":  # MPS has no float64
            query = query.cpu()
        gram, total = self._accumulators(layer, query.device)
        for row in query:
            for part in row.split(TOKENS_AT_ONCE, dim=1):
                part = part.to(gram.device, torch.float64)
                gram.baddbmm_(part.mT, part)
                total += part.sum(dim=1)
        self.tokens[layer] += query.shape[0] * query.shape[2]

    @torch.inference_mode(mode=False)
    def finish(self, source: dict[str, Any]) -> QFilters:
        """The Q-Filters of all queries so far, on the CPU; `update` may be called again afterwards.

        Args:
            source: what the filters belong to (see `QFilters`); `tokens`, the smallest number of tokens
                that any layer got, is added unless `source` has it.

        Raises:
            InputError: a layer got no query, or one that is not finite.
        """
        found = [self._finish_layer(layer) for layer in range(len(self.layers))]
        filters, directions, kappa, mean_query = zip(*found, strict=True) if found else [()] * 4
        tokens = min(self.tokens, default=0)
        return QFilters(filters, directions, kappa, mean_query, {"tokens": tokens, **source})

    def _accumulators(self, layer: int, device: torch.device) -> tuple[Tensor, Tensor]:
        gram, total = self._grams[layer], self._sums[layer]
        if gram is None or total is None:
            heads, dim = self.layers[layer].query_heads, self.layers[layer].head_dim
            gram = torch.zeros(heads, dim, dim, dtype=torch.float64, device=device)
            total = torch.zeros(heads, dim, dtype=torch.float64, device=device)
        self._grams[layer], self._sums[layer] = gram, total
        return gram, total

    def _finish_layer(self, layer: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        gram, total, tokens = self._grams[layer], self._sums[layer], self.tokens[layer]
        if gram is None or total is None or tokens == 0:
            raise InputError(
                f"Layer {layer} of {len(self.layers)} saw no queries: run calibration text "
                "through the model, and see that every layer reports its queries."
            )
        gram, mean = gram.cpu() / tokens, total.cpu() / tokens
        if not gram.isfinite().all():
            raise InputError(
                f"Layer {layer} had queries that are not finite: calibrate in float32 or bfloat16, "
                "and look at the calibration text and the weights."
            )
        directions, kappa = principal_directions(gram, mean)
        groups = directions.unflatten(0, (self.layers[layer].kv_heads, -1))
        filters = groups.mean(dim=1)
        return filters.float(), directions.float(), kappa.float(), mean.float()


def principal_directions(gram: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Each head's principal unit vector v1, signed to point towards the mean query, and kappa = <mean, v1>.

    If the mean has no component along v1 beyond rounding, the sign is arbitrary. Then the largest component
    of v1 is made positive, so that equal data give equal filters.

    Args:
        gram: mean of q q^T, `[heads, head_dim, head_dim]` float64.
        mean: mean of q, `[heads, head_dim]` float64.

    Returns:
        directions `[heads, head_dim]` and kappa `[heads]`, float64.
    """
    values, vectors = torch.linalg.eigh(gram)  # ascending
    directions = vectors[..., -1]
    kappa = (mean * directions).sum(dim=-1)
    largest = directions.gather(-1, directions.abs().argmax(dim=-1, keepdim=True)).squeeze(-1)
    rms = values[..., -1].clamp_min(0).sqrt()
    side = torch.where(kappa.abs() > NO_MEAN * rms, kappa, largest)
    sign = torch.where(side < 0, -1.0, 1.0).to(gram.dtype)
    return directions * sign.unsqueeze(-1), kappa * sign
