"""What the kernels ask of their operands: lengths, layout, and which keys a window shows."""

from collections.abc import Callable

import torch

from ..errors import InputError


def check_lengths(
    query: torch.Tensor,
    key: torch.Tensor,
    causal: bool,
    window: int | None,
    lengths: torch.Tensor | None = None,
) -> None:
    """Raise InputError for lengths that a form isn't defined for, in eager mode.

    A graph carries no check: Dynamo loses the message of one that lies in a nested region.
    """
    if torch.compiler.is_compiling():
        return
    queries, keys = query.shape[2], key.shape[2]
    if lengths is not None and (causal or window is not None):
        raise InputError(
            "attention: lengths go with the plain form only; attend to the chunk in a call of its own"
        )
    if window is not None:
        if window < 1:
            raise InputError(f"attention: window={window} shows no key; give at least 1")
        if keys < queries:
            raise InputError(
                f"attention over a window: {queries} queries but {keys} keys (dimension 2); the last "
                "keys must be the queries' own"
            )
    elif causal and keys != queries:
        raise InputError(
            f"causal attention: {queries} queries but {keys} keys (dimension 2); attend to earlier "
            "keys in a call of their own and join the two"
        )


def dense_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied only if its last dimension is strided: fused kernels read that as dense."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def visible_keys(
    queries: int, keys: int, window: int | None, device: torch.device, columns: int | None = None
) -> torch.Tensor:
    """[queries, columns or keys] bool: causal, aligned at the lower right, the last `window` keys."""
    place = torch.arange(queries, device=device) + (keys - queries)
    column = torch.arange(keys if columns is None else columns, device=device)
    distance = place.unsqueeze(1) - column
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def window_bias(query: torch.Tensor, keys: int, window: int) -> torch.Tensor:
    """[Sq, keys] in the query's dtype, 0 where `visible_keys` says so, else -inf."""
    return _bias(
        lambda columns: visible_keys(query.shape[2], keys, window, query.device, columns), keys, query
    )


def length_bias(query: torch.Tensor, keys: int, lengths: torch.Tensor) -> torch.Tensor:
    """[B, keys] in the query's dtype, 0 at the first lengths[b] keys of row b, else -inf."""
    return _bias(lambda columns: torch.arange(columns, device=query.device) < lengths[:, None], keys, query)


def _bias(seen: Callable[[int], torch.Tensor], keys: int, query: torch.Tensor) -> torch.Tensor:
    """Rows lie a multiple of 16 elements apart, as the memory-efficient CUDA kernel demands."""
    columns = (keys + 15) // 16 * 16
    return torch.where(seen(columns), 0.0, float("-inf")).to(query.dtype).narrow(1, 0, keys)
