"""Trace a model that transformers has split over processes as what one process computes of it.

Inside `shards_stand_in`, each spread weight is this process's part, a plain tensor in the same memory, and
each split module runs on these with the same collectives, as operators that a graph can hold.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..errors import CaptureError
from ..graph.shards import Shards
from ..upstream.modules import weight_stores
from ..upstream.tensor_parallel import is_spread, style_of
from .parallel_forwards import EMBEDDING, FORWARDS, LINEAR, Group

HEADS = {"q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value"}  # projections that make heads


def is_split(model: nn.Module) -> bool:
    """Whether weights of `model` are spread over processes."""
    return any(is_spread(weight) for weight in (*model.parameters(), *model.buffers()))


def refuse_unknown_split(model: nn.Module) -> None:
    """Raise CaptureError if a model's weights are spread in a way that isn't known.

    Raises:
        CaptureError: over a mesh of several dimensions, by other hands than transformers', or in a style that
            isn't known; the message names the weight or the module.
    """
    name, meshes = type(model).__name__, set[Any]()
    for path, module in model.named_modules():
        own = module.named_parameters(recurse=False), module.named_buffers(recurse=False)
        spread: dict[str, Any] = {key: w for named in own for key, w in named if is_spread(w)}
        style = style_of(module)
        if style is None:
            if not spread:
                continue
            raise CaptureError(
                f"{name} has weights that are spread over processes, such as {path}.{next(iter(spread))}, a "
                "DTensor, but not by transformers' tensor parallelism. qfpass compiles whole weights, plain "
                "tensors that hold each process's own heads, or a model loaded with "
                'tp_plan="auto".'
            )
        _refuse_module(name, path, module, style)
        meshes |= {weight.device_mesh for weight in spread.values()}
    if len(meshes) != 1 or next(iter(meshes)).ndim != 1:
        raise CaptureError(
            f"{name} is spread over processes in more than one way ({len(meshes)} meshes, the first of "
            f"{next(iter(meshes)).ndim} dimensions): load it with tensor parallelism alone."
        )
    _refuse_uneven_heads(model, next(iter(meshes)).size())


def _refuse_uneven_heads(model: nn.Module, processes: int) -> None:
    """Raise CaptureError if heads are split, but not into as many equal parts."""
    if not any(
        path.rpartition(".")[2] in HEADS and style_of(m) == "colwise" for path, m in model.named_modules()
    ):
        return
    config: Any = getattr(model, "config", None)
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    for what, name in (("query", "num_attention_heads"), ("key", "num_key_value_heads")):
        heads = getattr(text, name, None)
        if isinstance(heads, int) and heads % processes:
            raise CaptureError(
                f"{type(model).__name__} has {heads} {what} heads, which {processes} processes can't "
                "share evenly: take a number of processes that divides them."
            )


def _refuse_module(name: str, path: str, module: nn.Module, style: str) -> None:
    if style not in FORWARDS:
        raise CaptureError(
            f"{name} runs {path} in the parallel style {style!r}, which qfpass doesn't know: leave it out of "
            f"tp_plan. It knows {', '.join(sorted(FORWARDS))}."
        )
    kinds = {**dict.fromkeys(LINEAR, nn.Linear), **dict.fromkeys(EMBEDDING, nn.Embedding)}
    kind = kinds.get(style)
    if kind is not None and not isinstance(module, kind):
        raise CaptureError(
            f"{name} runs {path}, a {type(module).__name__}, in the parallel style {style!r}, in which "
            f"qfpass can only split a {kind.__name__}. Load the model unquantised."
        )


@contextmanager
def shards_stand_in(model: nn.Module) -> Iterator[Shards | None]:
    """Inside, a split model computes with this process's parts alone. Gives None for a whole one."""
    if not is_split(model):
        yield None
        return
    by_weight, parts = dict[int, nn.Parameter](), dict[int, tuple[torch.Tensor, Any]]()
    held, group, vocabulary = list[tuple[dict[str, Any], dict[str, Any]]](), None, None
    try:
        for module in model.modules():
            for store in weight_stores(module):
                spread: dict[str, Any] = {key: w for key, w in store.items() if is_spread(w)}
                held.append((store, dict(spread)))
                for key, weight in spread.items():
                    part = by_weight.setdefault(id(weight), _part_of(weight))
                    store[key], parts[id(part)] = part, (part, weight)
                    mesh = weight.device_mesh
                    group = Group(mesh.get_local_rank(), mesh.size(), mesh.get_group())
            if style_of(module) == "embedding_rowwise":
                rows = int(module.num_embeddings)  # type: ignore[arg-type]
                vocabulary = min(vocabulary or rows, rows)
        assert group is not None
        for module in model.modules():
            style, own = style_of(module), vars(module)
            if style is None:
                continue
            held.append((own, {"forward": own["forward"]}))
            own["forward"] = FORWARDS[style](module, group)
            if isinstance(module, nn.Embedding):  # its number is one of the whole table
                held.append((own, {"padding_idx": module.padding_idx}))
                own["padding_idx"] = None
        yield Shards(group.rank, group.size, group.processes, vocabulary, parts)
    finally:
        for store, before in reversed(held):
            store.update(before)


def _part_of(weight: Any) -> nn.Parameter:
    with torch.no_grad():
        return nn.Parameter(weight.to_local(), requires_grad=False)
