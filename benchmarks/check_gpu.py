"""What a GPU shows, in some eight minutes: `python benchmarks/check_gpu.py OUT`.

It runs the tests marked `cuda`, measures the kernel for steps by itself, then a model of Llama-3.1-8B's shape
with random bfloat16 weights: compile, a step after 2,048 to 131,072 tokens, a step beside StaticCache
compiled with CUDA graphs, a prompt of 32,768 tokens beside transformers, peak memory, and steps over stores
of few bits. Each part's figures are printed and written to OUT as soon as it is done. `--dry-run` does the
same with a tiny model on the processor.
"""

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from step_kernel import measure
from transformers import AutoModelForCausalLM, LlamaConfig

import qfpass
from qfpass.tools.bench.bandwidth import reader, weight_nbytes
from qfpass.tools.bench.contenders import BoundedContender, FullCache
from qfpass.tools.bench.timing import take_turns

SLOTS = 1024
LLAMA_8B = {
    "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 2**18,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}  # fmt: skip
TINY = LLAMA_8B | {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip


class Checks:
    """The parts of the check, which share one model and its compiled decoder.

    Args:
        dry: a tiny model on the processor, and short texts.
    """

    def __init__(self, dry: bool) -> None:
        self.device = torch.device("cpu" if dry else "cuda")
        self.dtype = torch.float32 if dry else torch.bfloat16
        self.slots = 64 if dry else SLOTS
        self.lengths = (128, 256) if dry else (2048, 32768, 131072)
        self.prompt = 256 if dry else 32768
        torch.manual_seed(0)
        config = LlamaConfig(**(TINY if dry else LLAMA_8B))
        with self.device:
            model = AutoModelForCausalLM.from_config(config, dtype=self.dtype)
        self.model: Any = model.eval()

    def kernel(self) -> dict[str, Any]:
        """The kernel for steps by itself; see step_kernel.py."""
        return measure(self.device, self.dtype, self.slots, self._a_byte)

    @cached_property
    def _a_byte(self) -> float:
        """Seconds that reading one takes."""
        read, nbytes = reader(self.device)
        took = take_turns({"read": lambda: read}, rounds=20, seconds=5, device=self.device)
        return took["read"].median / nbytes

    def compile(self) -> dict[str, Any]:
        """Seconds to the compiled model, to the first chunk's logits, and to the first three steps'."""
        start, seconds = time.perf_counter(), {}
        _ = self.compiled
        seconds["compiled"] = time.perf_counter() - start
        ids = self._ids(600 if self.slots == SLOTS else 100)
        session = self.compiled.session()
        self.compiled(input_ids=ids, past_key_values=session, logits_to_keep=1)
        self._wait()
        seconds["first token"] = time.perf_counter() - start
        for _ in range(3):
            self.compiled(input_ids=ids[:, :1], past_key_values=session)
        self._wait()
        return {"seconds": seconds | {"three steps": time.perf_counter() - start}}

    @cached_property
    def compiled(self) -> Any:
        """The model as qfpass compiles it."""
        return qfpass.compile(self.model, budget=self.slots, score="knorm")

    def steps(self) -> dict[str, Any]:
        """Milliseconds of a step by tokens seen and rows, and what reading the bytes would take."""
        ours = BoundedContender(self.compiled, "qfpass")
        contexts = {
            f"{tokens} tokens, {rows} rows": (ours.after(tokens, rows), rows)
            for tokens in self.lengths
            for rows in (1, 16)
        }
        return self._of_contexts(contexts)

    def few_bits(self) -> dict[str, Any]:
        """The same after the middle length, over as many slots of few bits."""
        contexts = {}
        for dtype in (torch.int8, "int8-int4"):
            compiled = qfpass.compile(self.model, budget=self.slots, score="knorm", store_dtype=dtype)
            ours = BoundedContender(compiled, "qfpass")
            for rows in (1, 16):
                contexts[f"{dtype}, {rows} rows"] = ours.after(self.lengths[1], rows), rows
        return self._of_contexts(contexts)

    def _of_contexts(self, contexts: dict[str, Any]) -> dict[str, Any]:
        """Milliseconds of a step of each (context, rows), and what reading its bytes would take."""
        calls: dict[str, Any] = {name: self._step(*context) for name, context in contexts.items()}
        took = take_turns(calls, rounds=40, seconds=20, device=self.device)
        weights = weight_nbytes(self.model)
        return {
            "GB/s": 1e-9 / self._a_byte,
            "ms": {name: 1000 * took[name].median for name in contexts},
            "bound": {name: 1000 * self._a_byte * (weights + c.nbytes) for name, (c, _) in contexts.items()},
        }

    def profile(self) -> dict[str, Any]:
        """Milliseconds of a step by kernel, and in all on the processor."""
        from torch.profiler import ProfilerActivity
        from torch.profiler import profile as record

        context = BoundedContender(self.compiled, "qfpass").after(self.lengths[0], 1)
        step = self._step(context, 1)()
        for _ in range(5):
            step()
        with record(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
            for _ in range(10):
                step()
        side = "device" if self.device.type == "cuda" else "cpu"
        times = sorted(
            (
                (getattr(e, f"self_{side}_time_total") / 10000, e.count / 10, e.key[:90])
                for e in recorded.key_averages()
            ),
            reverse=True,
        )
        return {"kernels": times[:25], "ms": sum(ms for ms, *_ in times)}

    def beside_static(self) -> dict[str, Any]:
        """Milliseconds of a step after the prompt's length, beside StaticCache compiled with CUDA graphs."""
        static = torch.compile(self.model.forward, dynamic=False, mode="reduce-overhead")
        theirs = FullCache(self.model, "StaticCache", static, is_static=True)
        ours, tokens = BoundedContender(self.compiled, "qfpass"), self.prompt
        found = {}
        for rows in (1, 8):
            contexts = {
                "qfpass": ours.after(tokens, rows),
                "StaticCache": theirs.after(tokens, rows, room=64),
            }
            calls = {name: self._step(context, rows) for name, context in contexts.items()}
            took = take_turns(calls, rounds=20, seconds=20, device=self.device)
            found[f"{rows} rows"] = {name: 1000 * timing.median for name, timing in took.items()}
        return {"ms": found}

    def prefill(self) -> dict[str, Any]:
        """Seconds and peak MiB above the weights of one prompt, beside transformers' DynamicCache."""
        ids, found = self._ids(self.prompt), {}
        ours = self.compiled.session

        def theirs() -> Any:
            return None

        for name, model, cache in (("qfpass", self.compiled, ours), ("transformers", self.model, theirs)):
            seconds = []
            for turn in range(3):
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                start = time.perf_counter()
                with torch.no_grad():
                    model(input_ids=ids, past_key_values=cache(), logits_to_keep=1)
                self._wait()
                seconds.append(time.perf_counter() - start)
                if self.device.type == "cuda" and turn:
                    peak = (torch.cuda.max_memory_allocated() - before) / 2**20
                    found[f"{name}, peak MiB"] = peak
            found[name] = min(seconds)
        store = self.compiled.session()
        store.allocate(1)
        return {"seconds": found, "store MiB": store.nbytes / 2**20}

    def _ids(self, tokens: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randint(self.model.config.vocab_size, (1, tokens), generator=generator).to(self.device)

    def _step(self, context: Any, rows: int) -> Callable[[], Callable[[], object]]:
        ids = torch.zeros(rows, 1, dtype=torch.long, device=self.device)
        return lambda: lambda: context.read(ids)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def run_tests(out: Path, dry: bool) -> dict[str, Any]:
    """The tests marked `cuda`; their output goes to a file of its own. Without a GPU all are skipped."""
    asked = f"-m pytest -q -m cuda -n {0 if dry else 8} -p no:cacheprovider --durations=15"
    command = [sys.executable, *asked.split()]
    with (out / "tests.txt").open("w") as log:
        code = subprocess.run(
            command, stdout=log, stderr=subprocess.STDOUT, timeout=240, check=False
        ).returncode
    print((out / "tests.txt").read_text()[-3500:], flush=True)
    return {"exit": code}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--part", action="append", help="only these; by default all of them")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    checks = Checks(asked.dry_run)
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "tests": lambda: run_tests(asked.out, asked.dry_run), "kernel": checks.kernel,
        "compile": checks.compile, "steps": checks.steps, "profile": checks.profile,
        "prefill": checks.prefill, "beside_static": checks.beside_static, "few_bits": checks.few_bits,
    }  # fmt: skip
    found: dict[str, Any] = {}
    names: list[str] = asked.part or list(parts)
    for name in names:
        start = time.perf_counter()
        try:
            found[name] = parts[name]()
        except Exception as error:  # the parts after it are worth knowing too
            found[name] = {"failed": f"{type(error).__name__}: {error}"}
            traceback.print_exc()
        found[name]["seconds of this part"] = time.perf_counter() - start
        print(name, json.dumps(found[name], indent=1), flush=True)
        (asked.out / "check_gpu.json").write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(any("failed" in part or part.get("exit") for part in found.values()))


if __name__ == "__main__":
    main()
