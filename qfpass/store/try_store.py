"""Try a store kind of the caller's own on a few tokens, before anything is compiled with it."""

import torch

from ..errors import ConfigError
from .store_kind import StoreKind, fields_of


@torch.no_grad()
def try_store(
    kind: type[StoreKind], head_dim: int, value_dim: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Store five random tokens of a layer of this form, at once and one by one, and read them again.

    Raises:
        ConfigError: it fails, its tensors aren't [B, Hkv, C] or [B, Hkv, C, n], what it reads isn't keys and
            values in the model's dtype, or a token's numbers depend on the others.
    """
    generator, heads = torch.Generator().manual_seed(0), (2, 3, 5)
    keys, values = (
        torch.randn(*heads, size, generator=generator).to(device, dtype) for size in (head_dim, value_dim)
    )
    scores = torch.rand(heads, generator=generator).to(device)
    positions = torch.arange(5, dtype=torch.int32, device=device).expand(heads)
    given = (keys, values, scores, positions)
    try:
        whole = kind.of(*given)
        parts = [kind.of(*(tensor[:, :, i : i + 1] for tensor in given)) for i in range(5)]
        read = whole.dense(dtype)
    except Exception as error:  # the caller's own code raises anything
        raise ConfigError(
            f"the store {kind.__name__} fails for keys {list(keys.shape)} and values {list(values.shape)} of "
            f"{dtype}: {error}"
        ) from error
    for name, tensor in zip(fields_of(kind), whole, strict=True):
        if tensor.shape[:3] != heads or tensor.dim() > 4:
            raise ConfigError(
                f"the store {kind.__name__} gives {name} of shape {list(tensor.shape)} for keys "
                f"{list(keys.shape)}: each tensor must be [B, Hkv, S] or [B, Hkv, S, n]."
            )
    if not (torch.equal(whole.scores, scores) and torch.equal(whole.positions, positions)):
        raise ConfigError(f"the store {kind.__name__} must keep scores and positions as they are.")
    for name, tensor, back in zip(("keys", "values"), (keys, values), read, strict=True):
        if (back.shape, back.dtype) != (tensor.shape, tensor.dtype):
            raise ConfigError(
                f"the store {kind.__name__} reads {name} of shape {list(back.shape)} in {back.dtype}: dense "
                f"must give {list(tensor.shape)} in the dtype that it is asked for, {tensor.dtype}."
            )
    for name, tensor, *each in zip(fields_of(kind), whole, *parts, strict=True):
        if not torch.equal(torch.cat(each, dim=2), tensor):
            raise ConfigError(
                f"the store {kind.__name__} gives a token other {name} when it is stored with others. Tokens "
                "enter and leave a store one by one, so what is stored may depend on one token alone."
            )
