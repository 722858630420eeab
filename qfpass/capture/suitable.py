"""Refuse, before anything is traced, models that can't be compiled however their forward is written."""

import sys

import torch
from torch import nn

from ..errors import CaptureError
from ..graph.devices import devices_of
from ..upstream.dispatched import waiting_elsewhere
from ..upstream.modules import parts_of, weight_stores
from ..upstream.pipeline_parallel import stage_of
from .library_linears import library_of
from .local_shards import is_split, refuse_unknown_split
from .local_stages import refuse_unknown_stages

# Wrappers around a model, by the module that defines them.
_WRAPPERS = {
    "torch.nn.parallel": ("DataParallel", "DistributedDataParallel"),
    "torch.distributed.fsdp": ("FullyShardedDataParallel",),
}


def refuse_unsuitable(model: nn.Module, needs_numbers: bool = True) -> None:
    """Raise CaptureError for a model that can't be traced, or that a compiled decoder couldn't run.

    Args:
        needs_numbers: whether weights on the meta device are refused.

    Raises:
        CaptureError: `model` is no module, an exported or scripted one, a wrapper, an encoder-decoder or in
            training mode; or its weights are on the meta device, spread over devices, or over processes in a
            way that isn't known, made in inference mode, or packed by compressed-tensors.
    """
    if not isinstance(model, nn.Module) and not _is_exported(model):
        if isinstance(model, str):
            raise CaptureError(
                f"a model is needed, not its name {model!r}: load it, "
                f"AutoModelForCausalLM.from_pretrained({model!r}).eval()."
            )
        raise CaptureError(f"a torch.nn.Module can be compiled, not {type(model).__name__}.")
    name = type(model).__name__
    if isinstance(model, torch.jit.ScriptModule) or _is_exported(model):
        raise CaptureError(
            f"{name} is a program that torch.export or TorchScript made from a model: compile that model."
        )
    for module in model.modules():
        if _is_wrapper(module):
            raise CaptureError(
                f"{type(module).__name__} gathers weights or splits batches around a model: compile the "
                "model inside it (its attribute `module`), with all of its weights on one device."
            )
    _refuse_weights(model, needs_numbers)
    if model.training:
        raise CaptureError(f"{name} is in training mode: call model.eval() first.")
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise CaptureError(f"{name} is an encoder-decoder; qfpass compiles causal decoders only.")


def _refuse_weights(model: nn.Module, needs_numbers: bool) -> None:
    name = type(model).__name__
    _refuse_devices(model)
    weights = [*model.named_parameters(), *model.named_buffers()]
    for path, weight in weights:
        if weight.is_meta and needs_numbers:
            raise CaptureError(
                f"{name} has weights without numbers, such as {path} on the meta device: load them first "
                "(from_pretrained, or model.to_empty(device=...) and load_state_dict)."
            )
        if weight.is_inference():
            raise CaptureError(
                f"{name} has weights that were made under torch.inference_mode(), such as {path}, and "
                "torch can't trace those: make or load the model under torch.no_grad() instead."
            )
    _refuse_moved_weights(model)
    if stage := stage_of(model):
        refuse_unknown_stages(model, stage)
    elif is_split(model):
        refuse_unknown_split(model)


def _refuse_devices(model: nn.Module) -> None:
    """Raise CaptureError for offloaded weights, and for several devices where one is needed."""
    name, waiting = type(model).__name__, waiting_elsewhere(model)
    if waiting is not None:
        raise CaptureError(
            f"{name} is offloaded: the weights of {waiting} wait in memory or on disk until they are needed, "
            "and would be read in every step: give it devices that hold all of it."
        )
    devices = [device for device in devices_of(model) if device.type != "meta"]
    if len(devices) < 2:
        return
    where = ", ".join(sorted(map(str, devices)))
    if len({device.type for device in devices}) > 1:
        raise CaptureError(f"{name} is spread over {where}: give it devices of one kind, or one device.")
    if library := library_of(model):
        raise CaptureError(
            f"{name} is quantised by {library} and spread over {where}: put it on one device, or load it "
            "unquantised."
        )
    if is_split(model) or stage_of(model):
        raise CaptureError(
            f"{name} is split over processes, and in this one spread over {where}: give each process one."
        )


def _refuse_moved_weights(model: nn.Module) -> None:
    """Raise CaptureError for weights that a library unpacks or fetches when the model is called."""
    for module in model.modules():
        store = type(weight_stores(module)[0])
        status = getattr(getattr(module, "quantization_status", None), "value", None)
        if status == "compressed" or store.__module__.startswith("compressed_tensors"):
            raise CaptureError(
                f"{type(model).__name__} holds weights of compressed-tensors, which unpacks them all in the "
                "model's first call: load it with quantization_config=CompressedTensorsConfig(dequantize="
                "True), which does so at once."
            )


def opaque_weight_classes(model: nn.Module) -> str:
    """Classes of parameters that are no plain tensors and don't tell of which tensors they consist, as text.

    Each class is named once, with the path of a parameter; the text is empty if there is none.
    """
    odd = {
        f"{type(weight).__module__}.{type(weight).__qualname__}": path
        for path, weight in model.named_parameters()
        if type(weight) is not nn.Parameter and not parts_of(weight)
    }
    return ", ".join(f"{kind} ({path})" for kind, path in odd.items())


def _is_exported(model: object) -> bool:
    """Whether `model` is torch.export's program, or a module made from one, known by its replaced eval()."""
    kinds = (torch.export.ExportedProgram, torch.export.UnflattenedModule)
    return isinstance(model, kinds) or (isinstance(model, nn.Module) and "eval" in vars(model))


def _is_wrapper(module: nn.Module) -> bool:
    return any(
        isinstance(module, getattr(sys.modules[holder], kind, ()))
        for holder, kinds in _WRAPPERS.items()
        if holder in sys.modules
        for kind in kinds
    )
