"""The kernel for steps by itself, a part of check_gpu.py: microseconds, bytes and errors by kind of store."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch

from qfpass.kernels.choose import choose_kernel, choose_step_kernel
from qfpass.kernels.cuda.step_attention.attend import attend
from qfpass.kernels.cuda.step_attention.op import attend_by_reference, attend_slots
from qfpass.kernels.form import AttentionForm
from qfpass.store.int4_values import Int4ValueSlots
from qfpass.store.int8_slots import Int8Slots
from qfpass.store.kv_form import KVForm
from qfpass.store.slots import Slots
from qfpass.store.store_kind import StoreKind, kv_nbytes
from qfpass.tools.bench.timing import take_turns

KV_HEADS, GROUP, DIM = 8, 4, 128  # Llama-3.1-8B's
KINDS: dict[str, type[StoreKind]] = {
    "the model's dtype": Slots, "int8": Int8Slots, "int8-int4": Int4ValueSlots
}  # fmt: skip
LARGEST_ERROR = 0.03  # of outputs of about 1 / 10, in bfloat16
Call = Callable[[], object]


def measure(device: torch.device, dtype: torch.dtype, slots: int, a_byte: float) -> dict[str, Any]:
    """Figures of one layer's attention over so many slots: of one row, of 16 rows, and of 16 times the slots
    (on a processor 2).

    `a_byte`: seconds to read one. On a processor Triton's interpreter runs the kernel, or its reference does.

    Raises:
        AssertionError: an output is farther from the reference than bfloat16 explains.
    """
    if device.type == "cpu":
        attend_slots.register_kernel("cpu")(_interpreted if _is_interpreted() else attend_by_reference)
    else:
        assert choose_step_kernel(device, dtype, DIM, DIM, AttentionForm(1.0)), "Triton isn't installed"
    layers, many = (32, 16) if device.type == "cuda" else (2, 2)  # more bytes than caches hold, as in a model
    calls, errors, bounds = dict[str, Call](), dict[str, float](), dict[str, float]()
    for rows, length in ((1, slots), (many, slots), (1, many * slots)):
        query = torch.randn(rows, KV_HEADS * GROUP, 1, DIM, device=device, dtype=dtype)
        for kind, made in KINDS.items():
            name = f"{kind}, {rows} rows, {length} slots"
            stores = [_store(made, rows, length, dtype, device) for _ in range(layers)]
            errors[name] = _error(query, stores[0])
            bounds[name] = 1e6 * a_byte * kv_nbytes(stores[0])
            calls[name] = _at_once(lambda q=query, s=stores: [_attend(q, each) for each in s], device)
        theirs = choose_kernel(device, dtype, DIM, DIM, AttentionForm(DIM**-0.5))
        own = [_store(Slots, rows, length, dtype, device) for _ in range(layers)]
        calls[f"{theirs.name}, {rows} rows, {length} slots"] = _at_once(
            lambda q=query, s=own, t=theirs: [
                t.attend(q, each[0], each[1], scale=DIM**-0.5) for each in s
            ],
            device,
        )  # fmt: skip
    ready = {name: lambda call=call: call for name, call in calls.items()}
    took = take_turns(ready, rounds=30, seconds=15, device=device)
    figures = {
        "us a layer": {name: 1e6 * timing.median / layers for name, timing in took.items()},
        "us bound": bounds,
        "error": errors,
    }
    assert max(errors.values()) < LARGEST_ERROR, figures
    return figures


def _is_interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _interpreted(*operands: Any) -> tuple[torch.Tensor, torch.Tensor]:
    from qfpass.kernels.cuda.step_attention.launch import launch

    return launch(*operands)


def _store(
    kind: type[StoreKind], rows: int, slots: int, dtype: torch.dtype, device: torch.device
) -> StoreKind:
    key, value = KVForm(KV_HEADS, DIM, DIM, dtype, device).random(rows, slots)
    beside = (torch.zeros(key.shape[:3], dtype=own, device=device) for own in (torch.float32, torch.int32))
    return kind.of(key, value, *beside)


def _operands(store: StoreKind) -> tuple[torch.Tensor, torch.Tensor, tuple[Any, Any]]:
    is_coded = isinstance(store, (Int8Slots, Int4ValueSlots))
    return store[0], store[1], (store[2], store[3]) if is_coded else (None, None)


def _attend(query: torch.Tensor, store: StoreKind) -> object:
    key, value, scales = _operands(store)
    return attend(query, key, value, scale=DIM**-0.5, scales=None if scales[0] is None else scales)


def _error(query: torch.Tensor, store: StoreKind) -> float:
    key, value, scales = _operands(store)
    operands: Sequence[Any] = (query, key, value, *scales, None, None, DIM**-0.5, None)
    out, wanted = attend_slots(*operands)[0], attend_by_reference(*operands)[0]
    return float((out.float() - wanted.float()).abs().max())


def _at_once(call: Call, device: torch.device) -> Call:
    """The call as one CUDA graph, as a step makes it; on a processor the call itself."""
    if device.type == "cpu":
        return call
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
