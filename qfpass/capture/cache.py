"""Keep captured graphs between processes, as files in Inductor's cache folder, if Inductor's cache is on."""

import logging
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import fx, nn

from ..graph.captured import Captured, device_and_dtype
from ..graph.module_paths import get_by_path
from ..upstream.entry import describe
from ..upstream.fx import GraphPickling, graph_pickling
from ..upstream.inductor_cache import cache_folder
from .decoder_call import LogitsWrapper
from .kinds import kind_of

log = logging.getLogger(__name__)


def cache_file(digest: str, batch: int | None) -> Path | None:
    """The file for the graph of a model whose digest is `digest`; None if Inductor's cache is off."""
    folder = cache_folder()
    return folder / "qfpass" / f"{digest[:32]}-{batch or 'any'}.pt" if folder else None


def load_captured(
    file: Path,
    model: nn.Module,
    batch: int | None = None,
    on_skip: Callable[[str], None] = log.warning,
) -> Captured | None:
    """The captured graph in `file`, on the weights of `model`; None if there is no file or it can't be read.

    The graph must have been kept for a model with the same digest. `on_skip` is called with the reason if a
    file can't be read.
    """
    pickling = graph_pickling()
    if pickling is None or not file.exists():
        return None
    try:
        return _read(pickling, file, model, batch)
    except Exception as error:  # a broken file may raise anything
        on_skip(f"the model is traced again, since {file} can't be read: {describe(error)}")
        return None


def save_captured(
    file: Path, captured: Captured, model: nn.Module, on_skip: Callable[[str], None] = log.debug
) -> None:
    """Write a captured graph to `file` for `load_captured`; if that fails, call `on_skip` with the reason."""
    pickling = graph_pickling()
    if pickling is None:
        return
    temporary = file.with_suffix(f".{secrets.token_hex(4)}")
    try:
        graph, constants = _copy_for_keeping(captured.module, LogitsWrapper(model))
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"graph": pickling.dump(graph), "constants": constants}, temporary)
        os.replace(temporary, file)  # whole or not at all
    except Exception as error:  # pickling an operator, or writing to the folder, may raise anything
        on_skip(f"not kept in {file}: {describe(error)}")
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _copy_for_keeping(module: fx.GraphModule, own: nn.Module) -> tuple[fx.Graph, dict[str, torch.Tensor]]:
    """A copy of the graph, and the tensors that it reads by attributes that `own` lacks, under new names.

    Raises:
        ValueError: such an attribute is no tensor, or sizes depend on more than the digest tells.
    """
    copy, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    constants = dict[str, torch.Tensor]()
    copy.output(copy.graph_copy(module.graph, copies))
    if any(node.target in (torch.sym_min, torch.sym_max) for node in copy.nodes):
        raise ValueError("its sizes depend on more than the digest tells")
    for new in copies.values():
        if new.op == "get_attr" and (value := get_by_path(module, new.target)) is not get_by_path(
            own, new.target
        ):
            if not isinstance(value, torch.Tensor):
                raise ValueError(f"{new.target} is no tensor")
            new.target = f"constant_{len(constants)}"
            constants[new.target] = value
    return copy, constants


def _read(pickling: GraphPickling, file: Path, model: nn.Module, batch: int | None) -> Captured:
    kept = torch.load(file, weights_only=True)
    graph = pickling.load(kept["graph"])
    root = LogitsWrapper(model)
    for name, tensor in kept["constants"].items():
        setattr(root, name, tensor)
    module, predicts = fx.GraphModule(root, graph), kind_of(model) == "logits"
    return Captured(module, *device_and_dtype(model), batch, predicts=predicts)
