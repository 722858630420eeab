"""Join attention over two disjoint sets of keys by their log-sum-exps."""

import torch


def join(
    out_a: torch.Tensor, lse_a: torch.Tensor, out_b: torch.Tensor, lse_b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """out [B, H, S, Dv] and lse [B, H, S] of two attentions -> those over all their keys.

    A side whose lse is -inf counts for nothing; two such sides give 0. Arithmetic and lse are
    float32, out is in `out_a`'s dtype.
    """
    lse = torch.logaddexp(lse_a, lse_b)
    # -inf less -inf would be NaN.
    total = lse.masked_fill(lse == float("-inf"), 0.0)
    share_a, share_b = (lse_a - total).exp()[..., None], (lse_b - total).exp()[..., None]
    out = share_a * out_a.float() + share_b * out_b.float()
    return out.to(out_a.dtype), lse
