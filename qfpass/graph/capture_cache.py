"""Captured graphs kept between processes, in Inductor's cache folder, while Inductor uses its own cache."""

import logging
import os
import secrets
from contextlib import suppress
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses import FakeTensorMode
from torch.fx._graph_pickler import GraphPickler, Options
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from .capture import Captured, Logits, place
from .tracing import read_rather_than_run

log = logging.getLogger(__name__)


def file_of(digits: str, batch: int | None) -> Path | None:
    """Where the graph of a model with these digits of `Identity` is kept; None if Inductor keeps nothing."""
    from torch._inductor import config  # imports Inductor
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    if not config.fx_graph_cache or config.force_disable_caches:
        return None
    return Path(cache_dir()) / "qfpass" / f"{digits[:32]}-{batch or 'any'}.pt"


def recall(file: Path, model: nn.Module, batch: int | None = None) -> Captured | None:
    """The graph in a file, of a model of the same identity; None if there is none."""
    if not file.exists():
        return None
    try:
        return _read(file, model, batch)
    except Exception as error:  # a broken file fails in any way
        log.warning("captured anew, since %s can't be read: %s: %s", file, type(error).__name__, error)
        return None


def keep(file: Path, captured: Captured, model: nn.Module) -> None:
    """Write a graph down for `recall`, unless it or the folder doesn't take to that."""
    temporary = file.with_suffix(f".{secrets.token_hex(4)}")
    try:
        graph, constants = _copy_for_keeping(captured.module, Logits(model))
        bare = fx.GraphModule(nn.Module(), fx.Graph())
        bare._graph = graph
        options = Options(ops_filter=None, node_metadata_key_filter=None)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"graph": GraphPickler.dumps(bare, options), "constants": constants}, temporary)
        os.replace(temporary, file)  # whole or not at all
    except Exception as error:  # whatever pickling an operator, or the folder, raises
        log.debug("not kept in %s: %s: %s", file, type(error).__name__, error)
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
        if new.op == "get_attr" and (held := _get(module, new.target)) is not _get(own, new.target):
            if not isinstance(held, torch.Tensor):
                raise ValueError(f"{new.target} is no tensor")
            new.target = f"constant_{len(constants)}"
            constants[new.target] = held
    return copy, constants


def _get(root: nn.Module, path: Any) -> Any:
    try:
        return attrgetter(path)(root)
    except AttributeError:
        return None


def _read(file: Path, model: nn.Module, batch: int | None) -> Captured:
    kept = torch.load(file, weights_only=True)
    bare: Any = GraphPickler.loads(kept["graph"], FakeTensorMode(shape_env=ShapeEnv()))
    root = Logits(model)
    for name, tensor in kept["constants"].items():
        setattr(root, name, tensor)
    return Captured(read_rather_than_run(root, bare.graph), *place(model), batch)
