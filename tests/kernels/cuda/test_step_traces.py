"""A step's graph with the operator on fake CUDA tensors: what a GPU would be asked for, without one."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny import FAMILIES
from torch._subclasses import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from qfpass.attention.find import find_attentions
from qfpass.capture.export import capture
from qfpass.graph.captured import Captured
from qfpass.kernels.cuda.step_attention import attend as triton_step
from qfpass.rewriting.on_stores import OnStores
from qfpass.rewriting.site import Site
from qfpass.rewriting.uncompressed import kernel_call_of
from qfpass.store.int4_values import Int4ValueSlots
from qfpass.store.int8_slots import Int8Slots
from qfpass.store.slots import SlotRule, Slots
from qfpass.store.store_kind import StoreKind

LAYERS = 2


class IndexByOperators(TorchFunctionMode):
    """Indexing by operators alone: x[...] asks for CUDA's device guard, which torch for processors lacks."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is torch.Tensor.__getitem__:
            return indexed(*args)
        if function is torch.Tensor.__setitem__:
            held, index, new = args
            return torch.ops.aten.index_put_(held, list(index), new)
        return function(*args, **(kwargs or {}))


def indexed(x: torch.Tensor, index: Any) -> torch.Tensor:
    """x[index] for numbers, slices, None and an ellipsis."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (x.dim() - sum(each is not None for each in parts) + 1)
    dim = 0
    for part in parts:
        if part is None:
            x = x.unsqueeze(dim)
        elif isinstance(part, slice):
            x = torch.ops.aten.slice(x, dim, part.start, part.stop, part.step or 1)
        else:
            x, dim = x.select(dim, part), dim - 1
        dim += 1
    return x


@pytest.fixture(scope="module")
def captured() -> Captured:
    return replace(capture(FAMILIES["llama"](layers=LAYERS, head_dim=32)), device=torch.device("cuda"))


@pytest.mark.parametrize("kind", [Slots, Int8Slots, Int4ValueSlots])
def test_each_layer_is_one_call_on_the_store_as_it_lies(
    captured: Captured, kind: type[StoreKind], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_step, "is_installed", lambda: True)
    rule = SlotRule(16, recent=2, sinks=1, score="knorm", store_type=kind)
    found = [replace(a, device=captured.device) for a in find_attentions(captured, 64)]
    sites = [Site(a, rule, kernel_call_of(captured, a)) for a in found]
    assert {site.layer.kernel for site in sites} == {"sdpa efficient, steps by triton"}
    with FakeTensorMode(), IndexByOperators():
        on_stores = OnStores(captured, sites)
        weights = {
            name: torch.empty(held.shape, dtype=held.dtype, device="cuda")
            for name, held in on_stores.module.state_dict(keep_vars=True).items()
        } | {
            name: torch.empty(held.shape, dtype=held.dtype, device="cuda")
            for name, held in on_stores.module.named_buffers()
        }
        ids = torch.zeros(1, 1, dtype=torch.long, device="cuda")
        stores = on_stores.allocate(1)
        inputs = on_stores.inputs(ids, stores, seen=20)
        graph = make_fx(lambda *given: functional_call(on_stores.module, weights, given))(*inputs).graph
    calls = graph.find_nodes(op="call_function", target=torch.ops.qfpass.attend_slots.default)
    assert len(calls) == LAYERS
    for call in calls:
        out, lse = call.meta["val"]
        assert (out.device.type, out.shape, lse.shape) == ("cuda", (1, 4, 1, 32), (1, 4, 1))
        assert call.args[1].meta["val"].dtype == stores[0].keys.dtype
        assert call.args[2].meta["val"].dtype == stores[0].values.dtype
