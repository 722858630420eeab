"""Real weights whose layers are split over processes: the tokens that one process writes."""

from pathlib import Path

import pytest
from assets import qwen_folder, weights_folder
from test_tensor_parallel_weights import run
from transformers.distributed import DistributedConfig
from two_processes import needs_gloo

pytestmark = [pytest.mark.weights, pytest.mark.slow, needs_gloo]


def test_smollm2_in_two_processes(tmp_path: Path) -> None:
    """It has thirty layers, and a head that shares the embeddings."""
    run(weights_folder(), tmp_path, 2, distributed_config=DistributedConfig(pp_size=2))


@pytest.mark.qwen
def test_qwen_in_two_processes(tmp_path: Path) -> None:
    """It has twenty-four."""
    run(qwen_folder(), tmp_path, 2, distributed_config=DistributedConfig(pp_size=2))
