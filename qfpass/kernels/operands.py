"""What kernels need of their operands: checks of lengths, memory layouts, and masks for windows."""

import torch

from ..errors import InputError


def check_form(
    query: torch.Tensor,
    key: torch.Tensor,
    causal: bool,
    window: int | None,
    bias: torch.Tensor | None,
) -> None:
    """Raise InputError, in eager mode, for a form that isn't defined for these lengths.

    While compiling nothing is checked, since a check would specialise the graph's symbolic lengths.
    """
    if torch.compiler.is_compiling():
        return
    queries, keys = query.shape[2], key.shape[2]
    if bias is not None:
        if causal or window is not None:
            raise InputError("attention with a bias: hide keys with -inf in it, without causal or window")
        if bias.shape[2:] != (queries, keys):
            raise InputError(
                f"attention: a bias of shape {tuple(bias.shape)} for {queries} queries and {keys} keys"
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
    """The tensor with a dense last dimension, as fused kernels need it; copied only if it is strided."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def visible_keys(
    queries: int, keys: int, window: int | None, device: torch.device, columns: int | None = None
) -> torch.Tensor:
    """A bool mask [queries, columns or keys], True where a query sees a key.

    It is causal, aligned at the lower right, and shows the last `window` keys if there is a window.
    """
    last_key = torch.arange(queries, device=device) + (keys - queries)
    column = torch.arange(keys if columns is None else columns, device=device)
    distance = last_key.unsqueeze(1) - column
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def window_bias(query: torch.Tensor, keys: int, window: int) -> torch.Tensor:
    """A bias [Sq, keys] in the query's dtype: 0 where `visible_keys` is True, else -inf.

    Its rows are a multiple of 16 elements apart, as the memory-efficient CUDA kernel requires.
    """
    columns = (keys + 15) // 16 * 16
    seen = visible_keys(query.shape[2], keys, window, query.device, columns)
    bias = torch.where(seen, 0.0, float("-inf")).to(query.dtype)
    return bias.narrow(1, 0, keys)
