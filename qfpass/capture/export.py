"""Capture a causal decoder as an ATen graph (input_ids, position_ids) -> logits, for texts of any length."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim

from ..attention.token_mixing import mixing_reason
from ..errors import CaptureError
from ..graph.captured import Captured, device_and_dtype, example_inputs
from ..graph.devices import put_constants_on
from ..graph.no_ops import drop_no_ops
from ..graph.nodes import args_of
from ..graph.tracing import trace_settings, without_printed_graphs
from ..normalize.grad_mode import write_out_grad_mode
from ..normalize.passes import normalize
from ..normalize.weight_parts import rewrite_weight_parts
from ..upstream import export
from ..upstream.entry import describe
from ..upstream.fx import merge_equal_nodes
from .decoder_call import LogitsWrapper
from .kinds import kind_of
from .layer_copies import expand_layer_copies, layer_copies_stand_in
from .library_linears import library_of
from .local_stages import part_stands_in
from .quantised_linears import plain_linears
from .ranks import are_several
from .suitable import opaque_weight_classes, refuse_unsuitable

log = logging.getLogger(__name__)


def capture(
    model: nn.Module,
    batch: int | None = None,
    repeats: Mapping[str, str] | None = None,
    on_skip: Callable[[str], None] = log.info,
    needs_numbers: bool = True,
) -> Captured:
    """The captured graph of `model`, traced by torch.export with a dynamic length and batch.

    Args:
        batch: the number of rows, for a model that is made for so many; None for any.
        repeats: layers that repeat an earlier one, by path in `LogitsWrapper`, with that one's path.
            Only the first is traced. If that fails, all are, and `on_skip` is called with the reason.
        needs_numbers: refuse weights on the meta device. The graph of such a model stands on the processor.

    Raises:
        CaptureError: `refuse_unsuitable` or torch.export refuses the model, it has no floating-point
            parameter, or its graph works for one length or batch only.
    """
    with plain_linears(model):
        refuse_unsuitable(model, needs_numbers)
        if repeats:
            try:
                return _captured(model, batch, repeats)
            except Exception as error:  # the model's own code may raise anything when layers don't run
                on_skip(f"every layer is traced: {describe(error)}")
        return _captured(model, batch, {})


def _captured(model: nn.Module, batch: int | None, repeats: Mapping[str, str]) -> Captured:
    with part_stands_in(model) as part:
        captured = _exported(model, batch, repeats)
    return replace(captured, predicts=kind_of(model) == "logits", part=part)


def _exported(model: nn.Module, batch: int | None, repeats: Mapping[str, str]) -> Captured:
    device, dtype = device_and_dtype(model)
    ids, positions = example_inputs(device, batch)
    whole = LogitsWrapper(model)
    # AUTO, since a model may bound the length itself, by a table of positions or of its mask.
    shape = {0: Dim.AUTO if batch is None else Dim.STATIC, 1: Dim.AUTO}
    with trace_settings(model), layer_copies_stand_in(whole, repeats), without_printed_graphs():
        try:
            program = torch.export.export(
                whole, (ids, positions), dynamic_shapes=(shape, shape), strict=False
            )
        except CaptureError:
            raise
        except Exception as error:  # torch.export lets through whatever the model's own code raises
            raise _untraceable(model, (ids, positions), error) from error
        _refuse_odd_sizes(program, whole, batch)
        module = _module(program, whole)
    if device.type == "meta":
        device = torch.device("cpu")
        put_constants_on(device, module.graph)
    conditions, left_behind = export.size_conditions(program), tuple(sorted(whole.left_behind))
    return Captured(_clean(module), device, dtype, batch, conditions, left_behind)


def captured_program(program: torch.export.ExportedProgram) -> Captured:
    """The graph of an export of one's own: (input_ids [B, S], position_ids [B, S]) -> logits [B, S, V].

    Raises:
        CaptureError: other inputs or outputs, or no weights.
    """
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    outputs = module.graph.output_node().all_input_nodes
    if [node.name for node in inputs] != ["input_ids", "position_ids"] or len(outputs) != 1:
        raise CaptureError(
            "the exported program must take input_ids and position_ids and give logits alone, not "
            f"({', '.join(node.name for node in inputs)}) -> {len(outputs)} values: export such a module."
        )
    ids, logits = inputs[0].meta["val"], outputs[0].meta["val"]
    if logits.dim() != 3 or str(logits.shape[:2]) != str(ids.shape) or _is_fixed(ids.shape[1]):
        raise CaptureError(
            f"the exported program gives {tuple(logits.shape)} for ids {tuple(ids.shape)}: export it with a "
            "dynamic length S, for logits [B, S, V] of every token."
        )
    batch = ids.shape[0]
    device, dtype = device_and_dtype(module)
    write_out_grad_mode(module)
    rewrite_weight_parts(module.graph)
    drop_no_ops(module.graph)
    conditions = export.size_conditions(program)
    fixed = batch if isinstance(batch, int) else None
    return Captured(_clean(module), device, dtype, fixed, conditions=conditions)


def _untraceable(model: nn.Module, example: tuple[torch.Tensor, ...], error: Exception) -> CaptureError:
    """The error to raise after torch.export failed with `error`: it names the cause, if one can be found."""
    name = type(model).__name__
    if not are_several():  # a call's collectives would wait for processes that may not make it
        try:
            LogitsWrapper(model)(*example)
        except CaptureError as own:
            return own
        except Exception as own:  # the model's own code may raise anything
            tokens = "x".join(map(str, example[0].shape))
            return CaptureError(
                f"{name} doesn't run on {tokens} token ids and their positions alone; its own forward fails: "
                f"{describe(own)}"
            )
    odd, library = opaque_weight_classes(model), library_of(model)
    cure = "Load it unquantised, or as docs/quantised_weights.md says"
    if odd:
        return CaptureError(
            f"{name} has weights of classes that hold more than torch.export sees of them: {odd}. {cure}. "
            f"({describe(error)})"
        )
    if library:
        return CaptureError(
            f"{name} is quantised by {library}, and torch.export can't trace it so: {describe(error)}. "
            f"{cure}, or call its dequantize() first if it has one."
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


def _module(program: torch.export.ExportedProgram, whole: LogitsWrapper) -> fx.GraphModule:
    """The traced graph's module without no-ops, with grad modes and layer copies written out."""
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    write_out_grad_mode(module)
    rewrite_weight_parts(module.graph)
    drop_no_ops(module.graph)
    expand_layer_copies(module, whole)
    return module


def _refuse_odd_sizes(program: torch.export.ExportedProgram, whole: LogitsWrapper, batch: int | None) -> None:
    """Raise CaptureError if logits don't have the ids' sizes, or if a dynamic size has become a constant."""
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


def _clean(module: fx.GraphModule) -> fx.GraphModule:
    """The traced `module` as (ids, positions) -> logits, without checks, normalized, with equal nodes merged.

    `module` itself is changed too.
    """
    graph = module.graph
    for node in list(graph.nodes):
        if export.is_check(node):
            graph.erase_node(node)
    graph.set_codegen(fx.graph.CodeGen())
    output = graph.output_node()
    (logits,) = args_of(output)[0]
    output.args = (logits,)
    normalize(module)
    merged = merge_equal_nodes(graph)
    merged.lint()
    _drop_meta(merged)
    return fx.GraphModule(module, merged)


def _drop_meta(graph: fx.Graph) -> None:
    """Drop what later steps don't read from the nodes' meta: they keep their traced value and module stack.

    Values of equal form become one fake tensor.
    """
    values = dict[str, Any]()
    for node in graph.nodes:
        value, stack = node.meta.get("val"), node.meta.get("nn_module_stack") or {}
        if isinstance(value, torch.Tensor):
            form = f"{value.dtype} {value.device} {tuple(value.shape)} {value.stride()}"
            value = values.setdefault(form, value)
        paths = {name: (path, str(kind)) for name, (path, kind) in stack.items()}
        node.meta = {"val": value, "nn_module_stack": paths}
