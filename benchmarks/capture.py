"""What telling layers apart, capturing, finding, rewriting and parting cost as a decoder gets deeper:
python benchmarks/capture.py

Processor seconds of a tiny Llama (random weights) by its number of layers, and seconds a layer.
"""

import time
from itertools import pairwise

import torch
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM

from qfpass.attention.find import find_attentions
from qfpass.capture.computation_digest import digest_computation, repeated_layers
from qfpass.capture.export import capture
from qfpass.regions.outline import outline
from qfpass.rewriting.uncompressed import Uncompressed

LAYERS, CONTEXT = (8, 16, 32, 64), 256


def build(layers: int) -> LlamaForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, vocab_size=61, **sizes)).eval()


def seconds(layers: int) -> tuple[float, ...]:
    model, times = build(layers), [time.process_time()]
    known = digest_computation(model, None, CONTEXT)
    alike = repeated_layers(model, known) if known else None
    times.append(time.process_time())
    captured = capture(model, alike=alike)
    times.append(time.process_time())
    attentions = find_attentions(captured, CONTEXT)
    times.append(time.process_time())
    program = Uncompressed(captured, attentions, capacity=CONTEXT, batch=1)
    times.append(time.process_time())
    outline(program.module)
    times.append(time.process_time())
    return tuple(b - a for a, b in pairwise(times))


def main() -> None:
    torch.set_num_threads(1)
    seconds(1)  # what the first capture of a process loads
    table = Table("layers", "tell apart", "capture", "find", "rewrite", "part", "all, a layer")
    for layers in LAYERS:
        spent = seconds(layers)
        table.add_row(str(layers), *(f"{s:.2f}" for s in spent), f"{sum(spent) / layers:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
