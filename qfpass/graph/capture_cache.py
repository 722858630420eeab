"""Captured graphs kept between processes, in Inductor's cache folder, while Inductor uses its own cache."""

import logging
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from torch import fx, nn

from ..upstream.entry import describe
from ..upstream.fx import GraphPickling, graph_pickling
from ..upstream.inductor_cache import cache_folder
from .capture import Captured, Logits, place
from .held import held
from .tracing import read_rather_than_run

log = logging.getLogger(__name__)


def file_of(digits: str, batch: int | None) -> Path | None:
    """Where the graph of a model with these digits of `Identity` is kept; None if Inductor keeps nothing."""
    folder = cache_folder()
    return folder / "qfpass" / f"{digits[:32]}-{batch or 'any'}.pt" if folder else None


def recall(
    file: Path,
    model: nn.Module,
    batch: int | None = None,
    lean: bool = True,
    on_skip: Callable[[str], None] = log.warning,
) -> Captured | None:
    """The graph in a file, of a model of the same identity; None if there is none.

    `on_skip` is told why a file that is there won't do.
    """
    pickling = graph_pickling()
    if pickling is None or not file.exists():
        return None
    try:
        return _read(pickling, file, model, batch, lean)
    except Exception as error:  # a broken file fails in any way
        on_skip(f"captured anew, since {file} can't be read: {describe(error)}")
        return None


def keep(
    file: Path, captured: Captured, model: nn.Module, on_skip: Callable[[str], None] = log.debug
) -> None:
    """Write a graph down for `recall`, unless it or the folder doesn't take to that; `on_skip` is told."""
    pickling = graph_pickling()
    if pickling is None:
        return
    temporary = file.with_suffix(f".{secrets.token_hex(4)}")
    try:
        graph, constants = _copy_for_keeping(captured.module, Logits(model))
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"graph": pickling.dump(graph), "constants": constants}, temporary)
        os.replace(temporary, file)  # whole or not at all
    except Exception as error:  # whatever pickling an operator, or the folder, raises
        on_skip(f"not kept in {file}: {describe(error)}")
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _copy_for_keeping(module: fx.GraphModule, own: nn.Module) -> tuple[fx.Graph, dict[str, torch.Tensor]]:
    """The graph, and what it reads that isn't `own`, under new names."""
    copy, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    constants = dict[str, torch.Tensor]()
    copy.output(copy.graph_copy(module.graph, copies))
    if any(node.target in (torch.sym_min, torch.sym_max) for node in copy.nodes):
        raise ValueError("its sizes depend on more than an identity tells")
    for new in copies.values():
        if new.op == "get_attr" and (value := held(module, new.target)) is not held(own, new.target):
            if not isinstance(value, torch.Tensor):
                raise ValueError(f"{new.target} is no tensor")
            new.target = f"constant_{len(constants)}"
            constants[new.target] = value
    return copy, constants


def _read(pickling: GraphPickling, file: Path, model: nn.Module, batch: int | None, lean: bool) -> Captured:
    kept = torch.load(file, weights_only=True)
    graph = pickling.load(kept["graph"])
    root = Logits(model)
    for name, tensor in kept["constants"].items():
        setattr(root, name, tensor)
    return Captured(read_rather_than_run(root, graph, lean), *place(model), batch, lean)
