"""Large models on the meta device, as one of eight processes of which the others are simulated."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers.distributed", reason="this transformers doesn't split models so")
SCRIPT = Path(__file__).parents[1] / "benchmarks" / "scale_capture.py"
MOST_GIB = 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "layers", "query_heads"),
    [("Llama-3.1-8B", 32, 4), ("Llama-3.1-70B", 80, 8), ("Llama-3.1-405B", 126, 16)],
)
def test_every_attention_is_found_and_rewritten_in_little_memory(
    name: str, layers: int, query_heads: int
) -> None:
    done = subprocess.run([sys.executable, SCRIPT, name], check=True, stdout=subprocess.PIPE, text=True)
    record = json.loads(done.stdout.splitlines()[-1])
    assert (record["model"], record["layers"]) == (name, layers)
    assert (record["query_heads"], record["kv_heads"]) == (query_heads, 1)
    assert record["gib"] < MOST_GIB
