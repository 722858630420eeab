"""Try a score of the caller's own on a few tokens, before anything is compiled with it."""

import torch

from ..errors import ConfigError
from .kv_form import KVForm
from .scores import Score


@torch.no_grad()
def try_score(score: Score, form: KVForm) -> None:
    """Score five random tokens of a layer of this form, at once and one by one.

    Raises:
        ConfigError: it fails, or doesn't give each token one finite number that depends on it alone.
    """
    keys, values = form.random(2, 5)
    positions = torch.arange(7, 12, device=form.device).expand(2, -1)
    pairs = form.kv_heads * (form.head_dim + form.value_dim)
    width = {None: 0, "published": form.head_dim, "trained": pairs + 2}[score.filters]
    generator = torch.Generator().manual_seed(1)
    filters = torch.randn(form.kv_heads, width, generator=generator).to(form.device) if width else None
    try:
        whole = score(keys, values, positions, filters)
        parts = [
            score(keys[:, :, i : i + 1], values[:, :, i : i + 1], positions[:, i : i + 1], filters)
            for i in range(5)
        ]
    except Exception as error:  # the caller's own code raises anything
        raise ConfigError(
            f"the score {score.name} fails for keys {list(keys.shape)} and values {list(values.shape)} of "
            f"{form.dtype}: {error}"
        ) from error
    if (
        not isinstance(whole, torch.Tensor)
        or whole.shape != keys.shape[:3]
        or not bool(whole.isfinite().all())
    ):
        raise ConfigError(
            f"the score {score.name} must give one finite number a head and token, [B, Hkv, S]."
        )
    if not torch.allclose(torch.cat(parts, dim=2).float(), whole.float(), rtol=1e-3, atol=1e-5):
        raise ConfigError(
            f"the score {score.name} of a token changes when it is read with others. A score is computed "
            "once, so it may depend on the token's own key, value and position alone."
        )
