"""What transformers promises of models whose layers it gives to processes."""

import pytest
import torch.distributed as dist
from staged import as_stage
from tiny import FAMILIES

from qfpass.upstream.pipeline_parallel import is_elsewhere, stage_of


@pytest.mark.parametrize("rank", range(3))
def test_stage_of_a_pipeline(rank: int, world: dist.ProcessGroup) -> None:
    model = FAMILIES["llama"](layers=4)
    own = model.forward
    assert stage_of(model) is None
    stage = stage_of(as_stage(model, rank, 3, world))
    assert stage is not None and (stage.rank, stage.size, len(stage.ends), stage.ends[-1]) == (rank, 3, 3, 4)
    assert stage.group is world and stage.own_forward == own
    model.forward = lambda *args: None
    other = stage_of(model)
    assert other is not None and other.own_forward is None


@pytest.mark.parametrize("rank", range(3))
def test_is_elsewhere_of_modules_of_other_processes(rank: int, world: dist.ProcessGroup) -> None:
    """Versions give a layer that is left to the first or to the last process; `ends` tell which."""
    model = as_stage(FAMILIES["llama"](layers=4), rank, 3, world)
    here = [i for i, layer in enumerate(model.model.layers) if not is_elsewhere(layer)]
    stage = stage_of(model)
    assert stage is not None
    assert here == list(range((0, *stage.ends)[rank], stage.ends[rank])) and here
    assert is_elsewhere(model.model.embed_tokens) == (rank != 0)
    assert is_elsewhere(model.model.norm) == is_elsewhere(model.lm_head) == (rank != 2)
