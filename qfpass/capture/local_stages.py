"""Trace a model whose layers transformers has split over processes as what one process computes of it.

Inside `stages_stand_in`, one hidden value goes through all stages in every process, and is handed on by
operators that a graph can hold: after a stage's layers all take the value of the process that has them. Other
processes' layers pass it on unchanged. So every process runs the same hand-offs in the same order, and each
depends on the one before. The last gives all of them the logits.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import CaptureError
from ..graph.captured import device_and_dtype
from ..graph.stages import Stages
from ..upstream.heads import backbone_of, is_sequence_classifier
from ..upstream.pipeline_parallel import Stage, is_elsewhere, stage_of
from ..upstream.process_groups import handed_on
from .equal_layers import Forward, forwards_replaced
from .local_shards import is_split, shards_stand_in


def refuse_unknown_stages(model: nn.Module, stage: Stage) -> None:
    """Raise CaptureError if a model's layers aren't split as transformers does it, or not in a way that fits.

    Raises:
        CaptureError: heads are split too, processes have no layer, modules lie elsewhere than expected, the
            sizes of embeddings or head differ from the config's, or the model gives no logits.
    """
    name, base = type(model).__name__, _backbone(model)
    if is_split(model):
        raise CaptureError(
            f"{name} is split by layers (pp_size) and its weights are also spread in another way: load it "
            "with pp_size alone, or with tp_plan alone."
        )
    if len(set(stage.ends)) < stage.size or stage.ends[0] == 0:
        raise CaptureError(
            f"{name} has {len(base.layers)} layers, too few for the {stage.size} stages of pp_size: take no "
            "more processes than layers."
        )
    if is_sequence_classifier(model) or not isinstance(getattr(model, "lm_head", None), nn.Module):
        raise CaptureError(
            f"{name} is split by layers (pp_size) and has no lm_head that gives logits over a vocabulary, "
            "which is what the last stage gives the others: load it whole, or with tp_plan."
        )
    last = stage.size - 1
    places = {f"layers.{i}": (layer, _owner(stage, i)) for i, layer in enumerate(base.layers)}
    places |= {"norm": (base.norm, last), "lm_head": (model.lm_head, last)}
    if stage.rank != last:  # which keeps embeddings for a head that shares them
        places["embed_tokens"] = (base.embed_tokens, 0)
    odd = [path for path, (m, owner) in places.items() if is_elsewhere(m) != (owner != stage.rank)]
    if odd or stage.own_forward is None:
        what = f"{odd[0]} is in another process than expected" if odd else "its forward is another"
        raise CaptureError(
            f"{name} isn't split by layers as transformers' pp_size does it ({what}): load it with "
            "DistributedConfig(pp_size=...) and leave its modules as they are."
        )
    _refuse_odd_sizes(model, stage)


def _refuse_odd_sizes(model: nn.Module, stage: Stage) -> None:
    """Raise CaptureError where weights have other sizes than the config says, on which the others rely."""
    embeds: Any = _backbone(model).embed_tokens
    gives: Any = model.lm_head
    rows, width = _sizes(model)
    sizes: dict[str, tuple[Any, int]] = {}
    if stage.rank == 0:
        sizes["its embedding has {} rows"] = getattr(embeds, "num_embeddings", None), rows
        sizes["its embeddings have {} numbers"] = getattr(embeds, "embedding_dim", None), width
    if stage.rank == stage.size - 1:
        sizes["its lm_head gives {} numbers"] = getattr(gives, "out_features", None), rows
    for words, (found, expected) in sizes.items():
        if found != expected:
            raise CaptureError(
                f"{type(model).__name__} is split by layers (pp_size), but {words.format(found)}, while its "
                f"config says {expected}. The other processes rely on the config: set it to fit."
            )


def _sizes(model: nn.Module) -> tuple[int, int]:
    """The vocabulary and the hidden size, as the config says."""
    config: Any = model.config
    text = config.get_text_config(decoder=True)
    return int(text.vocab_size), int(text.hidden_size)


def _backbone(model: nn.Module) -> Any:
    """The module that holds `embed_tokens`, `layers` and `norm`."""
    return backbone_of(model)


def _owner(stage: Stage, layer: int) -> int:
    return next(rank for rank, end in enumerate(stage.ends) if layer < end)


@contextmanager
def part_stands_in(model: nn.Module) -> Iterator[Any]:
    """Inside, a model that is split over processes computes with what this process has. Gives its `Part`.

    None for a whole model.
    """
    stage = stage_of(model)
    with stages_stand_in(model, stage) if stage else shards_stand_in(model) as part:
        yield part


@contextmanager
def stages_stand_in(model: nn.Module, stage: Stage) -> Iterator[Stages]:
    """Inside, a pipeline's model computes what this process has of it; a graph can hold the hand-offs."""
    base, last = _backbone(model), stage.size - 1
    (rows, width), dtype = _sizes(model), device_and_dtype(model)[1]
    instead: dict[str, tuple[Any, Callable[[Forward], Forward]]] = {
        "model": (model, lambda _: _gives_to_all(stage))
    }
    for source, end in enumerate(stage.ends[:-1]):
        hands_on = partial(_hands_on, stage=stage, source=source, form=(width, dtype))
        instead[f"end of stage {source}"] = base.layers[end - 1], hands_on
    # Where embeddings or head are elsewhere, fillers of the same form depend on
    # the ids and on what was handed on.
    if stage.rank != 0:
        instead["embeddings"] = base.embed_tokens, lambda _: partial(_filler, width=width, dtype=dtype)
    if stage.rank != last:
        instead["head"] = model.lm_head, lambda _: lambda hidden: hidden[..., :1].expand(-1, -1, rows)
    modules = {name: module for name, (module, _) in instead.items()}
    with forwards_replaced(modules, lambda name, forward: instead[name][1](forward)):
        yield Stages(stage.rank, stage.size, stage.group, rows)


def _filler(ids: torch.Tensor, width: int, dtype: torch.dtype) -> torch.Tensor:
    """A value [B, S, width] in the place of the embeddings of ids [B, S]; nobody reads its numbers."""
    return ids[..., None].to(dtype).expand(-1, -1, width)


def _gives_to_all(stage: Stage) -> Forward:
    """The forward of the whole model, whose logits are the last stage's in every process."""

    def forward(*args: Any, **keywords: Any) -> Any:
        output = stage.own_forward(*args, **keywords)
        output.logits = handed_on(output.logits, stage.group, stage.size - 1)
        return output

    return forward


def _hands_on(forward: Forward, stage: Stage, source: int, form: tuple[int, torch.dtype]) -> Forward:
    """The forward of a stage's last layer, whose value all take from the process that has it."""

    def handing_on(*args: Any, **keywords: Any) -> torch.Tensor:
        hidden = forward(*args, **keywords)
        if not isinstance(hidden, torch.Tensor) or (hidden.shape[-1], hidden.dtype) != form:
            raise CaptureError(
                "the last layer of a stage gives something else than the next stage takes, which is "
                f"{form[0]} numbers a token in {form[1]}: load the model whole, or with tp_plan."
            )
        return handed_on(hidden, stage.group, source)

    return handing_on
