"""The yardstick of the kernel contract: plain float32 softmax attention, every form, any device."""

import torch

from .operands import check_lengths, length_bias, visible_keys


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
    lengths: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `qfpass.kernels` for the contract; Dv may differ from D."""
    check_lengths(query, key, causal, window, lengths)
    # b: batch, h: kv head, g: head of its group, q: query, k: key, d: dimension.
    grouped = query.float().unflatten(1, (key.shape[1], -1))
    logits = torch.einsum("bhgqd,bhkd->bhgqk", grouped, key.float()) * scale
    if causal or window is not None:
        seen = visible_keys(query.shape[2], key.shape[2], window, query.device)
        logits = logits.masked_fill(~seen, float("-inf"))
    if lengths is not None:
        logits = logits + length_bias(logits, key.shape[2], lengths)[:, None, None, None, :]
    # Spelled out, since logsumexp asks whether there is any key, which an unbacked size can't tell.
    peak = logits.amax(-1, keepdim=True)
    weights = (logits - peak).exp()
    total = weights.sum(-1, keepdim=True)
    out = torch.einsum("bhgqk,bhkd->bhgqd", weights / total, value.float())
    lse = (peak + total.log()).squeeze(-1)
    return out.flatten(1, 2).to(query.dtype), lse.flatten(1, 2)
