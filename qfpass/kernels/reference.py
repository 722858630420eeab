"""The reference of the kernel contract: plain float32 softmax attention of every form, on any device."""

import torch

from .operands import check_form, visible_keys


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention (out, lse) as `qfpass.kernels` specifies it; Dv may differ from D."""
    check_form(query, key, causal, window, bias)
    # b: batch, h: kv head, g: head of its group, q: query, k: key, d: dimension.
    grouped = query.float().unflatten(1, (key.shape[1], -1))
    logits = torch.einsum("bhgqd,bhkd->bhgqk", grouped, key.float()) * scale
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    if bias is not None:
        every_head = bias.float().expand(-1, query.shape[1], -1, -1)
        logits = logits + every_head.unflatten(1, (key.shape[1], -1))
    if causal or window is not None:
        seen = visible_keys(query.shape[2], key.shape[2], window, query.device)
        logits = logits.masked_fill(~seen, float("-inf"))
    # Written out: logsumexp branches on whether there is any key, which an unbacked size can't tell.
    peak = logits.amax(-1, keepdim=True)
    weights = (logits - peak).exp()
    total = weights.sum(-1, keepdim=True)
    out = torch.einsum("bhgqk,bhkd->bhgqd", weights / total, value.float())
    lse = (peak + total.log()).squeeze(-1)
    return out.flatten(1, 2).to(query.dtype), lse.flatten(1, 2)
