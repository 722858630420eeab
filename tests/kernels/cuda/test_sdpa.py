"""The CUDA kernels without a GPU: shapes on tensors without data, numbers by a stand-in with their rules."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

from qfpass.kernels import reference
from qfpass.kernels.cuda import sdpa

Attend = Callable[..., tuple[torch.Tensor, torch.Tensor]]

HALF = (torch.float16, torch.bfloat16)
CASES = [
    (sdpa.attend_flash, torch.float16),
    (sdpa.attend_flash, torch.bfloat16),
    (sdpa.attend_efficient, torch.float32),
    (sdpa.attend_efficient, torch.bfloat16),
]
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
kernels = pytest.mark.parametrize(("attend", "dtype"), CASES)
forms = pytest.mark.parametrize(
    ("queries", "keys", "form"),
    [
        (1, 1, {}),
        (1, 40, {}),
        (7, 40, {}),
        (7, 7, {"causal": True}),
        (7, 40, {"window": 5}),
        (33, 33, {"window": 50, "causal": True}),
    ],
)


@kernels
@forms
@pytest.mark.parametrize("head_dim", [64, 10])
def test_shapes(
    attend: Attend, dtype: torch.dtype, queries: int, keys: int, form: dict[str, Any], head_dim: int
) -> None:
    with FakeTensorMode():
        query = torch.empty(2, 6, queries, head_dim, dtype=dtype, device="cuda")
        key = torch.empty(2, 2, keys, head_dim, dtype=dtype, device="cuda")
        out, lse = attend(query, key, key, scale=0.1, **form)
    assert (out.shape, out.dtype) == (query.shape, dtype)
    assert (lse.shape, lse.dtype) == ((2, 6, queries), torch.float32)
    assert out.device.type == lse.device.type == "cuda"


@kernels
@pytest.mark.parametrize("form", ["plain", "causal", "window"])
def test_lengths_known_only_at_run_time(attend: Attend, dtype: torch.dtype, form: str) -> None:
    env = ShapeEnv()
    with FakeTensorMode(shape_env=env):
        seen, length = env.create_unbacked_symint(), env.create_unbacked_symint()
        torch._check(seen >= 1)
        torch._check(seen <= 100)
        torch._check(length >= 2)
        past = torch.empty(2, 2, 100, 64, dtype=dtype, device="cuda").narrow(2, 0, seen)
        query, key = (
            torch.empty(2, length, heads, 64, dtype=dtype, device="cuda").transpose(1, 2) for heads in (6, 2)
        )
        if form == "plain":
            out, lse = attend(query, past, past, scale=0.1)
        elif form == "causal":
            out, lse = attend(query, key, key, scale=0.1, causal=True)
        else:
            both = torch.cat([past, key], dim=2)
            out, lse = attend(query, both, both, scale=0.1, window=5)
    assert out.shape == query.shape
    assert lse.shape == query.shape[:3]


class CudaRules(TorchDispatchMode):
    """Computes what the two CUDA kernels would, and refuses the operands that they refuse."""

    def __init__(self) -> None:
        super().__init__()
        self.called: list[str] = []
        self.key_storage = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._scaled_dot_product_flash_attention.default:
            return self.flash(*args, **(kwargs or {}))
        if func is torch.ops.aten._scaled_dot_product_efficient_attention.default:
            return self.efficient(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def note(self, name: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        self.called.append(name)
        self.key_storage = key.untyped_storage().data_ptr()
        assert query.dtype == key.dtype == value.dtype
        assert all(t.stride(3) == 1 for t in (query, key, value))

    def flash(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        dropout: float = 0.0,
        is_causal: bool = False,
        return_debug_mask: bool = False,
        *,
        scale: float,
    ) -> tuple[Any, ...]:
        self.note("flash", query, key, value)
        assert query.dtype in HALF
        assert query.shape[3] % 8 == 0
        assert query.shape[1] % key.shape[1] == 0
        assert not (dropout or return_debug_mask)
        group, empty = query.shape[1] // key.shape[1], query.new_empty(0)
        key, value = (t.repeat_interleave(group, dim=1) for t in (key, value))
        out, lse = plain(query, key, value, None, is_causal, scale)
        return out, lse, empty, empty, query.shape[2], key.shape[2], empty, empty, empty

    def efficient(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bias: torch.Tensor | None,
        compute_log_sumexp: bool,
        dropout: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float,
    ) -> tuple[torch.Tensor, ...]:
        self.note("efficient", query, key, value)
        assert query.shape[1] == key.shape[1] == value.shape[1]
        assert compute_log_sumexp
        assert not dropout
        alignment = 8 if query.dtype in HALF else 4
        operands = [query, key, value] if bias is None else [query, key, value, bias]
        for tensor in operands:
            pairs = zip(tensor.shape[:3], tensor.stride()[:3], strict=True)
            assert all(size == 1 or stride % alignment == 0 for size, stride in pairs)
        if bias is not None:
            assert bias.shape == (*query.shape[:3], key.shape[2])
            assert (bias.dtype, bias.stride(3)) == (query.dtype, 1)
        out, lse = plain(query, key, value, bias, is_causal, scale)
        # The kernel lays its output out heads last and leaves the padding of the lse as it was.
        out = out.transpose(1, 2).contiguous().transpose(1, 2)
        padded = lse.new_full((*lse.shape[:2], -(-lse.shape[2] // 32) * 32), float("nan"))
        padded[:, :, : lse.shape[2]] = lse
        empty = query.new_empty(0, dtype=torch.long)
        return out, padded, empty, empty


def plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    bias: torch.Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ungrouped attention in float64, rounded at the end."""
    logits = query.double() @ key.double().transpose(2, 3) * scale
    if bias is not None:
        logits = logits + bias
    if is_causal:
        assert query.shape[2] == key.shape[2]
        logits = logits.masked_fill(torch.ones_like(logits).triu(1) > 0, float("-inf"))
    out = logits.softmax(-1) @ value.double()
    return out.to(query.dtype), logits.logsumexp(-1).float()


@kernels
@forms
@pytest.mark.parametrize("head_dim", [64, 10])
@pytest.mark.parametrize("layout", ["heads first", "heads last", "dims first"])
def test_numbers(
    attend: Attend,
    dtype: torch.dtype,
    queries: int,
    keys: int,
    form: dict[str, Any],
    head_dim: int,
    layout: str,
) -> None:
    i, j = {"heads first": (0, 0), "heads last": (1, 2), "dims first": (2, 3)}[layout]
    generator = torch.Generator().manual_seed(0)
    operands = [
        (torch.randn(2, heads, length, head_dim, generator=generator) * 0.7)
        .to(dtype)
        .transpose(i, j)
        .contiguous()
        .transpose(i, j)
        for heads, length in ((6, queries), (2, keys), (2, keys))
    ]
    with CudaRules() as rules:
        out, lse = attend(*operands, scale=0.3, **form)
    wants_flash = attend is sdpa.attend_flash and "window" not in form
    assert rules.called == ["flash" if wants_flash else "efficient"]
    wanted_out, wanted_lse = reference.attend(*operands, scale=0.3, **form)
    torch.testing.assert_close(out, wanted_out, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    torch.testing.assert_close(lse, wanted_lse, atol=1e-4, rtol=1e-4)


@kernels
def test_a_store_is_read_in_place(attend: Attend, dtype: torch.dtype) -> None:
    """Neither the heads of a group nor a prefix of the slots make a copy of the keys."""
    store, query = torch.randn(2, 2, 50, 64).to(dtype), torch.randn(2, 6, 1, 64).to(dtype)
    with CudaRules() as rules:
        attend(query, store[:, :, :17], store[:, :, :17], scale=0.3)
    assert rules.key_storage == store.untyped_storage().data_ptr()
