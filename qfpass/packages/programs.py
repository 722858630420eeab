"""The graphs of a decoder as exported programs, with inputs that show AOTInductor their shapes.

In a rewritten graph the size of an input tells how many tokens a store holds. An exported program takes that
number as a tensor instead, so that one program serves every number, 0 and 1 included.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim

from ..decoder.decoder import Decoder
from ..decoder.overwritten_slots import finder_graph
from ..errors import PackageError
from ..lowering.decoder_graphs import STEP_OPTIONS, Graphs
from ..rewriting.step_inputs import SharedInputs, StepInputs
from ..sessions.stores import Stores
from ..store.layer import bounded_shares
from ..upstream.aot_packages import traced_size

READ = 5  # tokens that the example has read


@dataclass(frozen=True)
class Program:
    """A program to compile.

    Attributes:
        inputs: an example of its inputs.
        shapes: which of their dimensions are dynamic, as torch.export takes it; None if none is.
        options: Inductor's options for it.
    """

    module: nn.Module
    inputs: tuple[Any, ...]
    shapes: Any
    options: Mapping[str, Any]

    def exported(self) -> torch.export.ExportedProgram:
        """The program as torch.export traces it."""
        with torch.no_grad():
            return torch.export.export(self.module, self.inputs, dynamic_shapes=self.shapes, strict=False)


class WithCounts(nn.Module):
    """A graph on stores that is told how many tokens each store holds, by tensors [] int64.

    Args:
        most: the largest such number for `seen`, and for each of `held`.
    """

    def __init__(self, body: fx.GraphModule, head: fx.GraphModule | None, most: Sequence[int]) -> None:
        super().__init__()
        self.body, self.head, self.most = body, head, tuple(most)

    def forward(
        self,
        ids: torch.Tensor,
        position: torch.Tensor,
        counts: tuple[torch.Tensor, ...],
        lengths: torch.Tensor | None,
        recent: torch.Tensor,
        call_end: torch.Tensor,
        rest: tuple[torch.Tensor, ...],
    ) -> torch.Tensor:
        """Hidden values [B, S, E], or logits [B, S, V] with a head."""
        sizes = []
        for count, most in zip(counts, self.most, strict=True):
            sizes.append(torch.empty(traced_size(count, most), device=ids.device))
        out = self.body(ids, position, sizes[0], lengths, recent, call_end, *sizes[1:], *rest)
        return out if self.head is None else self.head(out)


def with_counts(inputs: Sequence[Any], shares: int) -> tuple[Any, ...]:
    """The inputs of `WithCounts.forward` after ids and position, from those of the graph on stores."""
    seen, lengths, recent, call_end = inputs[:4]
    held = inputs[4 : 4 + shares]
    counts = tuple(torch.tensor(sized.shape[-1]) for sized in (seen, *held))
    return counts, lengths, recent, call_end, tuple(inputs[4 + shares :])


def programs_of(decoder: Decoder, rows: int) -> dict[str, Program]:
    """The programs of a decoder for calls of `rows` rows, and of one, by name and rows, such as `step-1`.

    Rows of different lengths are read one by one.

    Raises:
        PackageError: the decoder's graphs are packages already.
    """
    graphs = decoder.graphs
    if not isinstance(graphs, Graphs):
        raise PackageError("this decoder was loaded from packages: export the one that was compiled.")
    return {
        f"{name}-{count}": program
        for count in sorted({1, rows})
        for name, program in _programs_of_rows(decoder, graphs, count).items()
    }


def _programs_of_rows(decoder: Decoder, graphs: Graphs, rows: int) -> dict[str, Program]:
    body, head = graphs.outlined.body, graphs.outlined.head
    stores = Stores.empty(decoder.layers, rows, decoder.dtype, decoder.device)
    most = (decoder.most_tokens, *map(decoder.sizes.slots_of, bounded_shares(decoder.layers)))
    recent = torch.tensor(decoder.sizes.recent, device=decoder.device)

    def inputs(tokens: int, lengths: torch.Tensor | None = None) -> tuple[Any, ...]:
        read = torch.empty(READ, device=decoder.device)
        call_end = torch.tensor(0, device=decoder.device)
        shared = SharedInputs(read, lengths, recent, call_end, held=(read,) * (len(most) - 1))
        filters = decoder.filters.for_slots(decoder.sizes.slots) if decoder.filters else ()
        values = StepInputs(decoder.layers).values(shared, stores, filters, stores.write_slots)
        position = torch.arange(READ, READ + tokens, device=decoder.device).expand(rows, -1).contiguous()
        return torch.zeros_like(position), position, *with_counts(values, len(most) - 1)

    step, watched = WithCounts(body, head, most), finder_graph(stores.stacks)
    tensors = [tensor for stack in stores.stacks for tensor in stack.flat]
    programs = {
        "step": Program(step, inputs(1), None, STEP_OPTIONS),
        "watch": Program(watched, (inputs(1)[1], recent.repeat(rows, 1), *tensors), None, {}),
    }
    if rows > 1:
        lengths = torch.full((rows,), READ, device=decoder.device)
        programs["uneven_step"] = Program(step, inputs(1, lengths), None, STEP_OPTIONS)
    if decoder.sizes.chunk > 1:
        length = Dim("length", min=2, max=graphs.longest)
        example = inputs(min(7, graphs.longest))
        shapes = _only_dim_1(example, length)
        programs["chunk"] = Program(WithCounts(body, None, most), example, shapes, {})
    if head is not None:
        # Its inputs are chosen tokens of a chunk; one token is doubled.
        hidden = torch.zeros(rows, 7, _width(body), dtype=decoder.dtype, device=decoder.device)
        chosen = Dim("chosen", min=2, max=max(7, graphs.longest))
        programs["head"] = Program(head, (hidden,), ({1: chosen},), {})
    return programs


def _only_dim_1(example: tuple[Any, ...], size: Any) -> tuple[Any, ...]:
    """The dynamic shapes of `WithCounts`' inputs: dimension 1 of ids and positions is `size`."""
    _, _, counts, _, _, _, rest = example
    return {1: size}, {1: size}, (None,) * len(counts), None, None, None, (None,) * len(rest)


def _width(body: fx.GraphModule) -> int:
    """The size E of the hidden values that a body gives."""
    (hidden,) = body.graph.output_node().all_input_nodes
    return int(hidden.meta["val"].shape[-1])
