"""The yardstick of the kernel contract: plain float32 softmax attention, every form, any device."""

import torch


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `qfpass.kernels` for the contract."""
    grouped = query.float().unflatten(1, (key.shape[1], -1))
    logits = grouped @ key.float().transpose(-1, -2)[:, :, None] * scale
    if causal or window is not None:
        seen = visible_keys(query.shape[2], key.shape[2], window, query.device)
        logits = logits.masked_fill(~seen, float("-inf"))
    lse = logits.logsumexp(-1)
    out = logits.softmax(-1) @ value.float()[:, :, None]
    return out.flatten(1, 2).to(query.dtype), lse.flatten(1, 2)


def visible_keys(
    queries: int,
    keys: int,
    window: int | None,
    device: torch.device,
) -> torch.Tensor:
    """[queries, keys] bool: causal, aligned at the lower right, within `window` if one is given."""
    place = torch.arange(queries, device=device) + (keys - queries)
    distance = place[:, None] - torch.arange(keys, device=device)[None, :]
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)
