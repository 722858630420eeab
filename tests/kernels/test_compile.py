"""The kernels inside one compiled graph: a length of any size, a number of keys known only at run time."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from qfpass.kernels import reference
from qfpass.kernels.cpu import flash
from qfpass.kernels.join import join

Attend = Callable[..., tuple[torch.Tensor, torch.Tensor]]

KERNELS = pytest.mark.parametrize("attend", [flash.attend, reference.attend], ids=["cpu", "reference"])
SCALE = 0.3
CAPACITY = 40


class StoreAndChunk(nn.Module):
    """The first keys of a store, then the chunk itself, as the bounded store calls a kernel."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self.attend = attend

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        store: torch.Tensor,
        visible: torch.Tensor,
    ) -> torch.Tensor:
        past = store[:, :, : visible.shape[0]]
        seen = self.attend(query, past, past, scale=SCALE)
        own = self.attend(query, key, value, scale=SCALE, causal=True)
        return join(*seen, *own)[0]


class Window(StoreAndChunk):
    """Past and chunk in one call, as the ring of a sliding layer calls a kernel."""

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        store: torch.Tensor,
        visible: torch.Tensor,
    ) -> torch.Tensor:
        past = store[:, :, : visible.shape[0]]
        keys, values = torch.cat([past, key], dim=2), torch.cat([past, value], dim=2)
        return self.attend(query, keys, values, scale=SCALE, window=7)[0]


class Regions(nn.Module):
    """The same layer twice as a nested region, each time on a store of its own."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        stores: torch.Tensor,
        visible: torch.Tensor,
    ) -> torch.Tensor:
        for store in stores:
            query = self.region(query, key, value, store, visible)
        return query

    @torch.compiler.nested_compile_region
    def region(self, *operands: torch.Tensor) -> torch.Tensor:
        return self.layer(*operands)


def operands(length: int, seen: int, stores: tuple[int, ...] = ()) -> list[torch.Tensor]:
    """query [2, 4, length, 8], key and value with 2 heads, a store, and a tensor `seen` long."""
    generator = torch.Generator().manual_seed(100 * length + seen)
    query, key, value = (
        torch.randn(2, length, heads, 8, generator=generator).transpose(1, 2) for heads in (4, 2, 2)
    )
    store = torch.randn(*stores, 2, 2, CAPACITY, 8, generator=generator)
    return [query, key, value, store, torch.empty(seen)]


def assert_one_graph(
    module: nn.Module, yardstick: nn.Module, sizes: list[tuple[int, int]], stores: tuple[int, ...] = ()
) -> torch.fx.Graph:
    """Compiled whole, once, the module gives what the yardstick gives eagerly at every size."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(module, backend=counter, fullgraph=True)
    with torch.no_grad():
        for length, seen in sizes:
            inputs = operands(length, seen, stores)
            for tensor in inputs[:3]:
                torch._dynamo.mark_dynamic(tensor, 2)
            torch._dynamo.decorators.mark_unbacked(inputs[4], 0)
            torch.testing.assert_close(compiled(*inputs), yardstick(*inputs), atol=2e-5, rtol=2e-5)
    assert counter.frame_count == 1
    return counter.graphs[0].graph


@KERNELS
def test_store_and_chunk_compile_once(attend: Attend) -> None:
    sizes = [(5, 3), (9, 17), (2, 1), (33, CAPACITY)]
    assert_one_graph(StoreAndChunk(attend), StoreAndChunk(reference.attend), sizes)


@KERNELS
def test_a_window_compiles_once(attend: Attend) -> None:
    assert_one_graph(Window(attend), Window(reference.attend), [(5, 3), (9, 17), (2, 0), (33, CAPACITY)])


@pytest.mark.parametrize("layer", [StoreAndChunk, Window])
def test_a_repeated_region_compiles_once(layer: type[StoreAndChunk]) -> None:
    module, yardstick = Regions(layer(flash.attend)), Regions(layer(reference.attend))
    graph = assert_one_graph(module, yardstick, [(5, 3), (9, 17)], stores=(2,))
    regions = graph.find_nodes(op="call_function", target=torch.ops.higher_order.invoke_subgraph)
    assert len(regions) == 2
