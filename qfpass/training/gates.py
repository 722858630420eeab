"""Gates between 0 and 1 in place of eviction, so that gradients can teach which keys to keep."""

import torch
from torch.nn import functional as F

LOWEST = -20.0  # the smallest log of a gate


def thresholds(score: torch.Tensor, count: torch.Tensor, temperature: float) -> torch.Tensor:
    """The thresholds [...] above which `count` [...] of the scores [..., n] lie, softly.

    A threshold solves sum_i sigmoid((score_i - threshold) / temperature) = count. It is found by bisection;
    its gradients are those of the implicit equation.
    """
    with torch.no_grad():
        low = score.amin(-1) - 10 * temperature
        high = score.amax(-1) + 10 * temperature
        for _ in range(30):
            middle = (low + high) / 2
            above = torch.sigmoid((score - middle[..., None]) / temperature).sum(-1) > count
            low, high = torch.where(above, middle, low), torch.where(above, high, middle)
        found = (low + high) / 2
        gate = torch.sigmoid((score - found[..., None]) / temperature)
        slope = gate * (1 - gate)
        total = slope.sum(-1).clamp_min(1e-6)
    follows_scores = (slope * (score - score.detach())).sum(-1) / total
    return found + follows_scores - temperature / total * (count - count.detach())


def log_gate(margin: torch.Tensor, temperature: float, always: torch.Tensor) -> torch.Tensor:
    """The logs of the gates of keys with scores `margin` above the threshold; 0 for `always` kept keys."""
    return F.logsigmoid(margin / temperature).clamp_min(LOWEST).masked_fill(always, 0.0)


def logistic_noise(like: torch.Tensor) -> torch.Tensor:
    """Logistic noise in the shape of `like`.

    x + noise is above 0 with probability sigmoid(x), so noise makes a gate a soft Bernoulli sample.
    """
    share = torch.rand_like(like).clamp(1e-4, 1 - 1e-4)
    return torch.log(share / (1 - share))


def gated_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    log_gates: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """Attention output [1, Hq, T, Dv] with log_gates [Hkv, T, n] added to the logits.

    query [1, Hq, T, D], keys [1, Hkv, n, D], values [1, Hkv, n, Dv]; softmax and gates are float32.
    """
    grouped = query.unflatten(1, (keys.shape[1], -1)) * scale
    logits = (grouped @ keys[:, :, None].transpose(-1, -2)).float() + log_gates[None, :, None]
    out = logits.softmax(-1).to(values.dtype) @ values[:, :, None]
    return out.flatten(1, 2)
