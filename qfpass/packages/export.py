"""Export a compiled decoder as a folder of packages, which run without a trace or a compiler."""

import os
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from ..capture.kinds import kind_of
from ..capture.quantised_linears import reads_parts_of_weights
from ..decoder.decoder import Decoder
from ..errors import PackageError
from ..filters.fingerprints import fingerprint
from ..lowering.lower import inductor_options
from ..lowering.weight_guard import are_plain
from ..upstream import inductor
from ..upstream.aot_packages import compile_package
from ..waits import Wait
from .manifest import Manifest, WeightEntry, entry_of, layers_as_json, made_with_now, settings_of
from .programs import Program, programs_of

CONSTANTS_FILE, FILTERS_FOLDER, MODEL_FOLDER = "constants.safetensors", "filters", "model"


def export_decoder(
    model: nn.Module, decoder: Decoder, folder: str | Path, rows: int = 1, own_weights: bool = True
) -> None:
    """Write the decoder of `model` into a new folder; see `CompiledDecoder.export`.

    Raises:
        PackageError: it can't be exported, or the folder can't be written.
    """
    folder = Path(folder)
    _refuse(model, decoder, folder, rows)
    temporary = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}")
    try:
        temporary.mkdir(parents=True)
        _write(model, decoder, temporary, rows, own_weights)
        if folder.exists():
            folder.rmdir()  # it is empty
        os.replace(temporary, folder)  # whole or not at all
    except OSError as error:
        raise PackageError(f"{folder} can't be written: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse(model: nn.Module, decoder: Decoder, folder: Path, rows: int) -> None:
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise PackageError(f"rows must be a whole number of at least 1, not {rows!r}.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise PackageError(f"{folder} is there already: give a new folder, or an empty one.")
    if decoder.part is not None:
        raise PackageError(
            "a model that is split over processes isn't exported: load it whole, without tp_plan or pp_size."
        )
    if decoder.lies_on_several:
        raise PackageError("a model on several devices isn't exported: load it on one.")
    if decoder.rotations:
        raise PackageError(
            "overflow='rerotate' moves keys by graphs that aren't exported: use another overflow."
        )
    if not are_plain(decoder.weights) or reads_parts_of_weights(model):
        raise PackageError("a model with quantised weights can't be exported: export a plain one.")
    if decoder.config.backend != "inductor":
        raise PackageError(f"packages are compiled by Inductor, not by {decoder.config.backend!r}.")
    if decoder.config.kernel is not None:
        raise PackageError("a kernel of the caller's own isn't exported: compile without it.")


def _write(model: nn.Module, decoder: Decoder, folder: Path, rows: int, own_weights: bool) -> None:
    layers = layers_as_json(decoder.layers)  # raises where a score can't be held
    tensors = dict[str, torch.Tensor]()
    programs = programs_of(decoder, rows)
    with Wait("compiling ahead of time", "some minutes") as wait:
        for name, program in wait.count(programs.items()):
            # Two programs may hold different constants of one name.
            of_package = _compile(program, folder / f"{name}.pt2", decoder)
            tensors |= {f"{name}:{own}": tensor for own, tensor in of_package.items()}
    weights, constants = _split(model, tensors)
    held = {name: tensor.detach().contiguous().clone() for name, tensor in constants.items()}
    (folder / CONSTANTS_FILE).write_bytes(save(held))
    if decoder.filters:
        decoder.filters.save(folder / FILTERS_FOLDER)
    saved = own_weights and hasattr(model, "save_pretrained") and kind_of(model) == "logits"
    if saved:
        saving: Any = model
        saving.save_pretrained(folder / MODEL_FOLDER)
    Manifest(
        made_with=made_with_now(str(decoder.device)),
        model=type(model).__name__,
        packages=sorted(programs),
        dtype=str(decoder.dtype).removeprefix("torch."),
        device=str(decoder.device),
        identity=decoder.fingerprint,
        fingerprint=fingerprint(tensors.values(), decoder.layers),
        weights=weights,
        vocabulary=decoder.vocabulary,
        follows_length=decoder.graphs.follows_length,
        has_filters=decoder.filters is not None,
        has_own_model=saved,
        sizes=asdict(decoder.sizes),
        settings=settings_of(decoder.config),
        layers=layers,
    ).write(folder)


def _compile(program: Program, file: Path, decoder: Decoder) -> dict[str, torch.Tensor]:
    """Write a program's package to `file`; its weights and constants by the package's names."""
    exported = program.exported()
    options = inductor_options(decoder.config, program.options)
    with decoder.running():
        try:
            compile_package(exported, file, options)
        except Exception as error:
            if not inductor.gave_up_loops(error):
                raise
            compile_package(exported, file, options)  # now without our C++ loops
    return {**exported.state_dict, **_tensors(exported.constants)}


def _tensors(constants: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in constants.items() if isinstance(value, torch.Tensor)}


def _split(
    model: nn.Module, tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, WeightEntry], dict[str, torch.Tensor]]:
    """The entry of each tensor that is one of the model's own, and the other tensors."""
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    own = {(tensor.data_ptr(), tensor.shape, tensor.stride()): name for name, tensor in named}
    weights, constants = dict[str, WeightEntry](), dict[str, torch.Tensor]()
    for name, tensor in tensors.items():
        found = own.get((tensor.data_ptr(), tensor.shape, tensor.stride())) if tensor.numel() else None
        if found is None:
            constants[name] = tensor
        else:
            weights[name] = entry_of(found, tensor)
    return weights, constants
