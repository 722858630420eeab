"""Read a bias by distance from the numbers that a mask adds to the logits."""

import torch

from ..errors import UnsupportedOpError
from ..kernels.distance_bias import DistanceBias, distance_bias

LINEAR_WITHIN = 1e-2  # relative to the largest bias: a table in half precision is rounded by that much
ROWS_READ = 16  # queries at which a bias is compared


def read_distance_bias(added: torch.Tensor | None, site: str) -> DistanceBias | None:
    """The only `DistanceBias` that numbers [H, 1 or S, S] can mean; `is_distance_bias` tells whether they do.

    Raises:
        UnsupportedOpError: they aren't finite.
    """
    if added is None:
        return None
    newest = added[:, -1]
    slopes = (newest[:, -1] - newest[:, 0]) / (added.shape[2] - 1)
    if not bool(slopes.isfinite().all()):
        raise not_by_distance(site)
    return DistanceBias(tuple(slopes.tolist()))


def is_distance_bias(added: torch.Tensor | None, bias: DistanceBias | None, from_nothing: bool) -> bool:
    """Whether numbers [H, 1 or S, S] are this bias plus a constant per query.

    Keys after the query don't count. With `from_nothing` that constant must be 0.
    """
    if added is None or bias is None:
        return (added is None) == (bias is None)
    length = added.shape[2]
    rows = torch.linspace(
        0, length - 1, min(length, ROWS_READ), dtype=torch.float64, device=added.device
    ).long()
    chosen = added[:, rows] if added.shape[1] > 1 else added.expand(-1, len(rows), -1)
    place = torch.arange(length, device=added.device)
    (expected,) = distance_bias(bias.numbers().to(added.device), rows[None], place[None, None])
    own = chosen.gather(2, rows[None, :, None].expand(len(chosen), -1, 1))
    own = torch.zeros_like(own) if from_nothing else own
    error = (chosen - own - expected).masked_fill(place > rows[:, None], 0.0).abs().max()
    return bool(error <= LINEAR_WITHIN * (1 + expected.abs().max()))


def not_by_distance(site: str) -> UnsupportedOpError:
    """The refusal of a mask whose bias is no `DistanceBias`."""
    return UnsupportedOpError(
        f"{site}: its mask adds a bias to the attention that isn't linear in the distance (as ALiBi's is), "
        "so the pass can't recompute it from stored positions."
    )
