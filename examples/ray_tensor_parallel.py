"""A server in replicas of two processes, each of which has half of the heads; needs the extra `ray`.

`python examples/ray_tensor_parallel.py` serves OpenAI's API on port 8000. On GPUs, give each process one:
ray_actor_options={"num_gpus": 1}.
"""

from pathlib import Path
from typing import Any

from ray import serve
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.distributed import DistributedConfig

import qfpass
from qfpass.serving.model_defaults import stop_tokens
from qfpass.serving.ray import replicated
from qfpass.serving.server.app import Served

NAME = "Qwen/Qwen2.5-Coder-0.5B-Instruct"  # two heads of keys


def load() -> tuple[Any, Any, Served]:
    """Called in each process of a replica, within torch's process group."""
    split = DistributedConfig(tp_plan="auto")
    model = AutoModelForCausalLM.from_pretrained(NAME, distributed_config=split).eval()
    compiled: Any = qfpass.compile(model, ratio=8)
    tokenizer = AutoTokenizer.from_pretrained(NAME)
    return compiled, tokenizer, Served("mine", stop=stop_tokens(compiled, tokenizer))


if __name__ == "__main__":
    sessions = Path("sessions").absolute()  # a folder that all processes see
    serve.run(replicated(load, folder=sessions, rows=4, ranks=2), blocking=True)
