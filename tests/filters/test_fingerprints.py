"""Fingerprints: the same for the same model, however it is held, and another for every other."""

import time
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qfpass.filters import fingerprint


class Layer(NamedTuple):
    query_heads: int
    kv_heads: int
    head_dim: int


LAYERS = [Layer(4, 2, 8)] * 2


def weights(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"embed": (50, 32), "q_proj": (32, 32), "norm": (32,), "scale": (), "none": (0, 4)}
    return {name: torch.randn(s, generator=generator).to(dtype) for name, s in shapes.items()}


def test_fingerprint_ignores_names_order_dtype_and_memory_layout() -> None:
    expected = fingerprint(weights().values(), LAYERS)
    assert len(expected) == 16 and int(expected, 16) >= 0
    assert fingerprint(reversed(weights().values()), LAYERS) == expected
    assert fingerprint(weights(torch.bfloat16).values(), LAYERS) == expected
    assert fingerprint(weights(torch.float64).values(), LAYERS) == expected
    renamed = {name[::-1]: tensor for name, tensor in weights().items()}
    assert fingerprint(renamed.values(), LAYERS) == expected
    strided = {name: t.T.contiguous().T if t.ndim == 2 else t for name, t in weights().items()}
    assert not strided["embed"].is_contiguous()
    assert fingerprint(strided.values(), LAYERS) == expected
    assert fingerprint([*weights().values(), weights()["norm"]], LAYERS) == expected
    grown = {name: t.requires_grad_() for name, t in weights().items()}
    assert fingerprint(grown.values(), LAYERS) == expected


def changed(edit: Callable[[dict[str, torch.Tensor]], object]) -> str:
    tensors = weights()
    edit(tensors)
    return fingerprint(tensors.values(), LAYERS)


def test_fingerprint_sees_shapes_values_and_layers() -> None:
    same = fingerprint(weights().values(), LAYERS)
    others = [
        changed(lambda t: t.update(embed=t["embed"].view(32, 50))),
        changed(lambda t: t["norm"].mul_(1.1)),
        changed(lambda t: t["norm"].neg_()),
        changed(lambda t: t["embed"].view(-1)[-1].add_(1)),
        changed(lambda t: t["scale"].add_(1)),
        changed(lambda t: t.pop("none")),
        fingerprint(weights().values(), LAYERS[:1]),
        fingerprint(weights().values(), [Layer(4, 4, 8), LAYERS[1]]),
        fingerprint(weights().values(), [Layer(4, 2, 16), LAYERS[1]]),
        fingerprint(weights().values(), [Layer(8, 2, 8), LAYERS[1]]),
    ]
    assert len({same, *others}) == len(others) + 1


@given(st.lists(st.integers(0, 6), max_size=4))
def test_fingerprint_of_any_shape(shape: list[int]) -> None:
    tensor = torch.arange(torch.Size(shape).numel()).float().reshape(shape)
    base = fingerprint([tensor], [])
    assert base == fingerprint([tensor.bfloat16()], [])
    assert base != fingerprint([tensor.unsqueeze(0)], [])
    if 0 < tensor.numel() <= 64:  # every element is sampled
        last = tensor.clone()
        last.view(-1)[-1] += 1
        assert base != fingerprint([last], [])


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_fingerprint_of_quantized_weights(dtype: torch.dtype) -> None:
    first = fingerprint([torch.zeros(9, 9).to(dtype)], [])
    assert first != fingerprint([torch.ones(9, 9).to(dtype)], [])


def test_fingerprint_reads_no_whole_tensor() -> None:
    """300 expanded tensors of 4 GB each: reading or copying one would fail or take minutes."""
    huge = [torch.ones(1).expand(2**15, 2**15) for _ in range(300)]
    started = time.monotonic()
    assert len(fingerprint(huge, LAYERS)) == 16
    assert time.monotonic() - started < 1


@pytest.mark.cuda
def test_fingerprint_is_the_same_on_the_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    moved = {name: tensor.cuda() for name, tensor in weights().items()}
    assert fingerprint(moved.values(), LAYERS) == fingerprint(weights().values(), LAYERS)
