"""Try a store kind of the caller's own on a few tokens, before anything is compiled with it."""

import torch

from ..errors import ConfigError
from .kv_form import KVForm
from .store_kind import StoreKind, empty_store, fields_of

TOKENS = 5
CLOSE = 0.05  # of the largest number: rounding that differs with the number of tokens is no fault


@torch.no_grad()
def try_store(kind: type[StoreKind], form: KVForm) -> None:
    """Store five random tokens of a layer of this form, at once and one by one, and read them again.

    Raises:
        ConfigError: it fails, its tensors aren't [B, Hkv, C] or [B, Hkv, C, n], what it reads isn't keys and
            values in the model's dtype, an empty slot isn't finite, or a token depends on the others.
    """
    (keys, values), dtype = form.random(2, TOKENS), form.dtype
    scores = keys[..., 0].float()
    positions = torch.arange(TOKENS, dtype=torch.int32, device=form.device).expand(keys.shape[:3])
    given = (keys, values, scores, positions)
    try:
        whole = kind.of(*given)
        parts = [kind.of(*(tensor[:, :, i : i + 1] for tensor in given)) for i in range(TOKENS)]
        empty = empty_store(kind, 2, TOKENS, form)
        (key, value), (no_key, no_value) = whole.dense(dtype), empty.dense(dtype)
        alone = [part.dense(dtype) for part in parts]
        read = (("keys", keys, key, no_key), ("values", values, value, no_value))
    except Exception as error:  # the caller's own code raises anything
        raise ConfigError(
            f"the store {kind.__name__} fails for keys {list(keys.shape)} and values {list(values.shape)} of "
            f"{dtype}: {error}"
        ) from error
    _check_tensors(kind, whole, given)
    for n, (name, tensor, back, of_empty) in enumerate(read):
        one_by_one = torch.cat([part[n] for part in alone], dim=2)
        if (back.shape, back.dtype) != (tensor.shape, tensor.dtype):
            raise ConfigError(
                f"the store {kind.__name__} reads {name} of shape {list(back.shape)} in {back.dtype}: its "
                f"dense() must return {list(tensor.shape)} in {tensor.dtype}, the dtype that it is given."
            )
        if not bool(of_empty.isfinite().all()):
            raise ConfigError(
                f"the store {kind.__name__} reads {name} that aren't finite from an empty slot, which holds "
                "zeros: they would make every logit NaN."
            )
        if bool((back - one_by_one).abs().max() > CLOSE * back.abs().max()):
            raise ConfigError(
                f"the store {kind.__name__} changes a token's {name} when it is stored with others. Tokens "
                "enter and leave a store one by one, so what is stored may depend on one token alone."
            )


def _check_tensors(kind: type[StoreKind], whole: StoreKind, given: tuple[torch.Tensor, ...]) -> None:
    keys, _, scores, positions = given
    for name, tensor in zip(fields_of(kind), whole, strict=True):
        if tensor.shape[:3] != keys.shape[:3] or tensor.dim() > 4:
            raise ConfigError(
                f"the store {kind.__name__} gives {name} of shape {list(tensor.shape)} for keys "
                f"{list(keys.shape)}: each tensor must be [B, Hkv, S] or [B, Hkv, S, n]."
            )
    kept = (whole.scores, scores), (whole.positions, positions)
    if not all(mine.dtype == its.dtype and torch.equal(mine, its) for mine, its in kept):
        raise ConfigError(f"the store {kind.__name__} must keep scores and positions as they are.")
