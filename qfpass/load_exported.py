"""qfpass.load: run a decoder that `CompiledDecoder.export` wrote, without a trace, a proof or a compiler."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from .capture.original import original_of
from .capture.suitable import refuse_unsuitable
from .decoder.decoder import Decoder
from .errors import PackageError
from .filters.fingerprints import fingerprint
from .filters.load import load_filters
from .model.attach import attach
from .model.changes import DecoderVersions
from .model.compiled_decoder import CompiledDecoder
from .model.returned import output_maker
from .packages.export import CONSTANTS_FILE, FILTERS_FOLDER, MODEL_FOLDER
from .packages.graphs import PackagedGraphs
from .packages.manifest import Manifest, entry_of
from .store.layer import bounded_shares

_TRACING = ("trace_layers_once", "capture_cache")


def load(folder: str | Path, model: nn.Module | None = None) -> CompiledDecoder:
    """The decoder that `compiled.export(folder)` wrote, on the weights of `model`.

    It is called, generates and makes sessions as the compiled one did, for calls of as many rows as it was
    exported for. It runs what was compiled then: nothing is traced, proven or compiled.

    Args:
        model: the model that was compiled, or one of the same class and weights; its parameters are shared
            and read in place. By default the one that was saved beside the packages.

    Raises:
        PackageError: the folder holds no packages, they were made with other versions or another kind of
            processor, or `model` is another model.
    """
    folder = Path(folder)
    manifest = Manifest.read(folder)
    model = _saved_model(folder, manifest) if model is None else original_of(model)
    refuse_unsuitable(model)
    layers, sizes = manifest.decoder_layers(), manifest.decoder_sizes()
    constants = load_file(folder / CONSTANTS_FILE, device=manifest.device)
    tensors = {**_weights(model, manifest, folder), **constants}
    if fingerprint(tensors.values(), layers) != manifest.fingerprint:
        raise PackageError(
            f"{type(model).__name__} has other weights than the model that {folder} was exported from."
        )
    filters = load_filters(folder / FILTERS_FOLDER).to(manifest.device) if manifest.has_filters else None
    device = torch.device(manifest.device)
    graphs = PackagedGraphs(
        folder, manifest.packages, tensors, device=device, longest=sizes.longest_chunk,
        shares=len(bounded_shares(layers)), follows_length=manifest.follows_length,
    )  # fmt: skip
    decoder = Decoder(
        graphs, layers, filters, sizes, manifest.config(), device, manifest.torch_dtype, manifest.identity,
        manifest.vocabulary, rotations=(), skipped=dict.fromkeys(_TRACING, "nothing is traced"),
    )  # fmt: skip
    changes = DecoderVersions(model, decoder, None, lambda: None, _refuse_change)
    return attach(model, decoder, changes, output_maker(model, device))


def _saved_model(folder: Path, manifest: Manifest) -> Any:
    if not manifest.has_own_model:
        raise PackageError(f"{folder} was exported without weights: pass the {manifest.model} as model=.")
    from transformers import AutoModelForCausalLM

    dtype = manifest.torch_dtype
    return AutoModelForCausalLM.from_pretrained(folder / MODEL_FOLDER, dtype=dtype).eval().to(manifest.device)


def _weights(model: nn.Module, manifest: Manifest, folder: Path) -> Mapping[str, torch.Tensor]:
    """The model's tensors by the names in `Manifest.weights`.

    Raises:
        PackageError: one is missing, or has another dtype, shape, strides or device.
    """
    own = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    found = dict[str, torch.Tensor]()
    for name, known in manifest.weights.items():
        weight = own.get(known["name"])
        if weight is None:
            raise PackageError(
                f"{type(model).__name__} has no {known['name']}: {folder} was made of another model, "
                f"{manifest.model}."
            )
        if (form := entry_of(known["name"], weight)["form"]) != known["form"]:
            raise PackageError(
                f"{known['name']} is {form}, and {folder} was exported from a model where it is "
                f"{known['form']}: load or cast the model to that."
            )
        found[name] = weight
    return found


def _refuse_change() -> Decoder:
    raise PackageError(
        "the model has changed since its export was loaded, and exported graphs can't follow a change: undo "
        "it, or compile the model as it is now."
    )
