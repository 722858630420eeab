"""How transformers gives a model's layers to processes, one stage of a pipeline each."""

from typing import Any, NamedTuple

from torch import nn

from .entry import Needed
from .heads import backbone_of


class Stage(NamedTuple):
    """One process's stage of a pipeline.

    Attributes:
        rank: its number, from 0; the first embeds the ids, the last gives the logits.
        ends: for each stage the number of the layer that follows its last one.
        group: the process group of all stages.
        own_forward: the forward of a model that is whole, which transformers' own hand-offs surround; None if
            the model's forward is another.
    """

    rank: int
    ends: tuple[int, ...]
    group: Any
    own_forward: Any

    @property
    def size(self) -> int:
        """The number of stages."""
        return len(self.ends)


@Needed
def stage_of(model: nn.Module) -> Stage | None:
    """The stage of a model that `DistributedConfig(pp_size=...)` has split; None if it isn't split so.

    Without it: such a model is taken for one of fewer layers.
    """
    stage: Any = getattr(model, "_pp_stage", None)
    if stage is None or stage.pp_size == 1:
        return None
    layers = getattr(backbone_of(model), "layers", ())  # a wrapper such as PEFT's has none
    ends = tuple(int(stage.layer_range_for_rank(rank, len(layers))[1]) for rank in range(stage.pp_size))
    forward: Any = vars(model).get("forward")
    own = type(model).forward
    surrounds = getattr(getattr(forward, "__wrapped__", None), "__func__", None) is own
    return Stage(stage.pp_rank, ends, stage.pp_group, own.__get__(model) if surrounds else None)


@Needed
def is_elsewhere(module: nn.Module) -> bool:
    """Whether another process has the module in whose place this one stands, which passes its input on.

    Without it: a model whose layers lie in other processes than expected is proven in vain.
    """
    from transformers.distributed.pipeline_parallel import PipelineIdentityLayer

    return isinstance(module, PipelineIdentityLayer)
