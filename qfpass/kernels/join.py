"""Join attention over two disjoint sets of keys, by log-sum-exp."""

import torch


def join(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The out [B, H, S, Dv] and lse [B, H, S] over all keys, from those of two attentions.

    An attention whose lse is -inf has no weight; two such attentions give 0. Arithmetic and lse are float32;
    out has the dtype of `out_a`.
    """
    lse = torch.logaddexp(lse_a, lse_b)
    # -inf minus -inf would be NaN.
    total = lse.masked_fill(lse == float("-inf"), 0.0)
    share_a, share_b = (lse_a - total).exp()[..., None], (lse_b - total).exp()[..., None]
    out = share_a * out_a.float() + share_b * out_b.float()
    return out.to(out_a.dtype), lse
