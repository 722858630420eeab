"""One stage of a model that transformers splits by layers, in a process alone: traced, but never run."""

from typing import Any, NamedTuple

import torch.distributed as dist
from torch import nn
from transformers.distributed.pipeline_parallel import apply_pipeline_parallelism


class Mesh(NamedTuple):
    """What transformers asks of a mesh of pipeline stages."""

    rank: int
    stages: int
    group: dist.ProcessGroup

    def get_local_rank(self) -> int:
        return self.rank

    def size(self) -> int:
        return self.stages

    def get_group(self) -> dist.ProcessGroup:
        return self.group


def as_stage(model: nn.Module, rank: int, stages: int, group: dist.ProcessGroup) -> Any:
    """The model with the layers of one stage alone, in place."""
    mesh: Any = Mesh(rank, stages, group)
    return apply_pipeline_parallelism(model, mesh)
