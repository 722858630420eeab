"""torch's attention kernels take these operands and give the log-sum-exp too, the queries' first."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from qfpass.upstream.attention_ops import efficient_on_cuda, flash_on_cuda, flash_on_processor

SCALE = 0.3


def operands(
    device: str, dtype: torch.dtype, kv_heads: int = 2
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Five queries of 4 heads over 12 keys of `kv_heads`."""
    generator = torch.Generator().manual_seed(0) if device == "cpu" else None
    shapes = ((2, 4, 5, 16), (2, kv_heads, 12, 16), (2, kv_heads, 12, 16))
    query, key, value = (
        torch.randn(shape, generator=generator, device=device, dtype=dtype) for shape in shapes
    )
    return query, key, value


@pytest.mark.parametrize("biased", [False, True])
def test_flash_on_processor_reads_grouped_heads_and_gives_the_log_sum_exp(biased: bool) -> None:
    query, key, value = operands("cpu", torch.float32)
    bias = torch.linspace(-1, 1, 60).view(1, 1, 5, 12) if biased else None
    out, lse = flash_on_processor(query, key, value, False, bias, SCALE)
    logits = query @ key.repeat_interleave(2, 1).mT * SCALE + (0 if bias is None else bias)
    torch.testing.assert_close(out, logits.softmax(-1) @ value.repeat_interleave(2, 1))
    torch.testing.assert_close(lse, logits.logsumexp(-1))


def test_flash_on_processor_hides_later_keys() -> None:
    query, key, value = operands("cpu", torch.float32)
    out, _ = flash_on_processor(query, key[:, :, :5], value[:, :, :5], True, None, SCALE)
    torch.testing.assert_close(out[:, :, 0], value[:, :, 0].repeat_interleave(2, 1))


def test_flash_on_cuda_reads_grouped_heads_and_gives_the_log_sum_exp() -> None:
    """By its operator's own rule for shapes; numbers are tested on a GPU, with the kernels."""
    with FakeTensorMode():
        out, lse = flash_on_cuda(*operands("cuda", torch.float16), False, SCALE)
    assert (out.shape, lse.shape, lse.dtype) == ((2, 4, 5, 16), (2, 4, 5), torch.float32)


def test_efficient_on_cuda_takes_a_bias_and_gives_the_log_sum_exp() -> None:
    with FakeTensorMode():
        query, key, value = operands("cuda", torch.float32, kv_heads=4)
        bias = torch.empty(2, 4, 5, 16, device="cuda").narrow(3, 0, 12)
        out, lse = efficient_on_cuda(query, key, value, bias, False, SCALE)
    assert (out.shape, lse.shape[:2], lse.dtype) == ((2, 4, 5, 16), (2, 4), torch.float32)
    assert lse.shape[2] >= 5
