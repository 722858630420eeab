"""How long one of eight processes takes to find and rewrite the attentions of a large model without weights.

`python benchmarks/scale_capture.py` writes docs/performance/scale_capture.json, from one process a model.
With a model's name, it prints the record of this model alone. The models are on the meta device, and the
other seven processes are fake.
"""

import json
import os
import resource
import subprocess
import sys
import time

import torch
import torch.distributed as dist
from records import DOCS
from scale import MODELS, RANKS
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig
from transformers.distributed.tensor_parallel import apply_tensor_parallelism

import qfpass
from qfpass.store.slots import SlotRule

RECORD = DOCS / "performance" / "scale_capture.json"


def measure(name: str) -> dict[str, object]:
    """The record of one model."""
    split = next(split for split in MODELS if split.name == name)
    os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(RANKS)}
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=RANKS)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(split.config, dtype=torch.bfloat16).eval()
    plan = model._resolve_parallel_plans(DistributedConfig(tp_size=RANKS, tp_plan="auto"))[0]
    apply_tensor_parallelism(model, dist.device_mesh.init_device_mesh("cpu", (RANKS,)), plan)
    start = time.perf_counter()
    attentions = qfpass.find(model)
    qfpass.rewrite(attentions, SlotRule(16384, 4096, 4, "published"))
    return {
        "model": split.name,
        "layers": len(attentions),
        "query_heads": attentions[0].query_heads,
        "kv_heads": attentions[0].kv_heads,
        "seconds": time.perf_counter() - start,
        "gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    """Measure the models of two bytes a weight, each in a process of its own."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
        return
    records = []
    for split in MODELS:
        if split.weight_nbytes == 2:
            done = subprocess.run(
                [sys.executable, __file__, split.name], check=True, stdout=subprocess.PIPE, text=True
            )
            records.append(json.loads(done.stdout.splitlines()[-1]))
            print(records[-1], flush=True)
    RECORD.write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    main()
