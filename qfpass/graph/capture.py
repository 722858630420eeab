"""Capture: any causal decoder to an ATen graph (input_ids, position_ids) -> logits, any length."""

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim

from ..errors import CaptureError
from ..upstream import export
from ..upstream.entry import describe
from ..upstream.fx import merge_equal_nodes
from .buffers import spell_written_buffers
from .call import call_decoder, logits_of
from .flex import spell_flex_attention
from .grad_mode import write_out_grad_mode
from .inplace import spell_out_of_place
from .layer_copies import traced_once, write_out
from .likes import spell_likes
from .mixing import BATCH, LENGTH, mixing_reason
from .no_ops import drop_no_ops
from .products import spell_products
from .ranks import are_several
from .sinks import spell_sinks
from .suitable import odd_weights, refuse_unsuitable
from .tracing import as_traced, without_printed_graphs

aten = torch.ops.aten
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Captured:
    """A decoder's graph: placeholders `input_ids` and `position_ids` [B, S], output logits [B, S, V].

    The graph module's parameters and buffers are the model's own, not copies. `batch` is None where any
    number of rows will do. What is made of a graph that is `lean` is traced lean too.
    """

    module: fx.GraphModule
    device: torch.device
    dtype: torch.dtype
    batch: int | None = None
    lean: bool = True
    conditions: tuple[str, ...] = ()


class Logits(nn.Module):
    """The model as (input_ids, position_ids) -> logits. If `lean`, no switch of the grad mode is traced."""

    def __init__(self, model: nn.Module, lean: bool = True) -> None:
        super().__init__()
        self.model, self.lean = model, lean

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        with export.without_grad_mode() if self.lean else nullcontext():
            return logits_of(call_decoder(self.model, input_ids, position_ids))


def capture(
    model: nn.Module,
    batch: int | None = None,
    alike: Mapping[str, str] | None = None,
    lean: bool = True,
    on_skip: Callable[[str], None] = log.info,
) -> Captured:
    """Trace `model` with a dynamic length and batch; `batch` for a model that is made for so many rows.

    `alike` has layers by path in `Logits`, each with the first that does the same: it alone is traced, if
    that will do; `on_skip` is told why it won't. `lean` leaves out of the trace what nobody reads.

    Raises:
        CaptureError: training mode, encoder-decoder, no parameters, or torch.export's refusal.
    """
    refuse_unsuitable(model)
    if alike:
        try:
            return _captured(model, batch, alike, lean)
        except Exception as error:  # whatever a model's own code raises when layers don't run
            on_skip(f"every layer is traced: {describe(error)}")
    return _captured(model, batch, {}, lean)


def _captured(model: nn.Module, batch: int | None, alike: Mapping[str, str], lean: bool) -> Captured:
    device, dtype = place(model)
    ids, positions = example(device, batch)
    whole = Logits(model, lean)
    # AUTO, for a model may bound the length itself, by a table of positions or of its mask.
    shape = {0: Dim.AUTO if batch is None else Dim.STATIC, 1: Dim.AUTO}
    lazily = export.lazily_made_modules() if lean else nullcontext()
    with as_traced(model, lean), traced_once(whole, alike), lazily, without_printed_graphs():
        try:
            program = torch.export.export(
                whole, (ids, positions), dynamic_shapes=(shape, shape), strict=False
            )
        except CaptureError:
            raise
        except Exception as error:  # torch.export raises anything that the model's own code raises
            raise _untraceable(model, (ids, positions), error) from error
        finally:
            if lean:
                export.forget_last_trace()
        _refuse_odd_sizes(program, whole, batch)
        module = _module(program, whole)
    return Captured(_clean(module), device, dtype, batch, lean, export.size_conditions(program))


def example(device: torch.device, batch: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and positions [B, S] that a trace reads."""
    ids = torch.zeros(batch or BATCH, LENGTH, dtype=torch.long, device=device)
    return ids, torch.arange(LENGTH, device=device).expand(len(ids), -1).contiguous()


def _untraceable(model: nn.Module, example: tuple[torch.Tensor, ...], error: Exception) -> CaptureError:
    """Why export failed: the model doesn't run on token ids alone, or not without looking at values."""
    name = type(model).__name__
    if not are_several():  # else others may not be there to run it with this one
        try:
            Logits(model)(*example)
        except CaptureError as own:
            return own
        except Exception as own:  # whatever the model's own code raises
            tokens = "x".join(map(str, example[0].shape))
            return CaptureError(
                f"{name} doesn't run on {tokens} token ids and their positions alone; its own forward fails: "
                f"{describe(own)}"
            )
    if odd := odd_weights(model):
        return CaptureError(
            f"{name} has weights of classes that hold more than torch.export sees of them: {odd}. Load it "
            f"unquantised, or quantised by torchao's weight-only kinds. ({describe(error)})"
        )
    if export.depends_on_values(error):
        return CaptureError(
            f"{name} can't be held in one graph: its forward branches on, or takes a size from, values that "
            "it computes (such as how many tokens an expert gets)."
        )
    instead = ""
    if "mat_a" in str(error) and hasattr(model, "set_experts_implementation"):
        instead = (
            " Before torch 2.12 experts' grouped products are traced in bfloat16 alone: call "
            "model.set_experts_implementation('batched_mm') first, which is slower for long prompts."
        )
    return CaptureError(f"torch.export can't trace {name}: {describe(error)}{instead}")


def _module(program: torch.export.ExportedProgram, whole: Logits) -> fx.GraphModule:
    """The traced graph without no-ops, every layer and grad mode written out."""
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    write_out_grad_mode(module)
    drop_no_ops(module.graph)
    write_out(module, whole)
    return module


def _refuse_odd_sizes(program: torch.export.ExportedProgram, whole: Logits, batch: int | None) -> None:
    name = type(whole.model).__name__
    ids = next(n for n in program.graph.nodes if n.op == "placeholder" and n.name == "input_ids")
    (logits,) = program.graph.output_node().all_input_nodes
    if str(logits.meta["val"].shape[:2]) != str(ids.meta["val"].shape):
        raise CaptureError(
            f"{name} gives logits of shape {tuple(logits.meta['val'].shape)} for ids of shape "
            f"{tuple(ids.meta['val'].shape)}: wrap it in a module that gives those of every token."
        )
    fixed = [
        what
        for what, size in zip(("batch", "length"), ids.meta["val"].shape, strict=True)
        if _is_fixed(size) and not (what == "batch" and batch is not None)
    ]
    if not fixed:
        return
    if reason := mixing_reason(_clean(_module(program, whole))):
        raise CaptureError(f"{name} can't be compiled: {reason}.")
    raise CaptureError(
        f"{name} works for one {' and one '.join(fixed)} only: its forward turns that size into a "
        "constant (by a Python branch, a loop over tokens, or a view of a fixed size)."
    )


def _is_fixed(size: int | torch.SymInt) -> bool:
    return isinstance(size, int) or size.node.maybe_as_int() is not None


def place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device and the dtype that a model computes in."""
    floating = [p for p in model.parameters() if p.is_floating_point()]
    if not floating:
        raise CaptureError(f"{type(model).__name__} has no floating-point parameters.")
    return floating[0].device, floating[0].dtype


def _clean(module: fx.GraphModule) -> fx.GraphModule:
    """Drop checks, spell products one way, merge equal nodes, flatten the signature."""
    graph = module.graph
    spell_likes(graph)
    for node in list(graph.nodes):
        if export.is_check(node):
            graph.erase_node(node)
        elif node.target is aten.view.default:
            # A kernel's output may lie in memory in another order than the original's, which a view refuses.
            node.target = aten.reshape.default
    graph.set_codegen(fx.graph.CodeGen())
    output = graph.output_node()
    (logits,) = output.args[0]
    output.args = (logits,)
    spell_flex_attention(module, graph)
    spell_written_buffers(graph)
    spell_out_of_place(graph)
    spell_products(graph)
    spell_sinks(graph)
    merged = merge_equal_nodes(graph)
    merged.lint()
    _drop_meta(merged)
    return fx.GraphModule(module, merged)


def _drop_meta(graph: fx.Graph) -> None:
    """All but what later steps read of a node: its value, one for all that are alike, and where it stood."""
    values = dict[str, Any]()
    for node in graph.nodes:
        value, stack = node.meta.get("val"), node.meta.get("nn_module_stack") or {}
        if isinstance(value, torch.Tensor):
            form = f"{value.dtype} {value.device} {tuple(value.shape)} {value.stride()}"
            value = values.setdefault(form, value)
        paths = {name: (path, str(kind)) for name, (path, kind) in stack.items()}
        node.meta = {"val": value, "nn_module_stack": paths}
