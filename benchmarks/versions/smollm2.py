"""SmolLM2's real weights with the versions that run this: what it writes, how long a step takes, and how.

python benchmarks/versions/smollm2.py OUT.json
"""

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import qfpass

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
from assets import essays_text, weights_folder

PROMPT, NEW_TOKENS, CONTEXT = 700, 200, 1024
RATIO, READ, UNTIMED, STEPS = 8, 1500, 10, 100  # more is read than there are slots


def tokens_alike(model: Any, compiled: Any, ids: torch.Tensor) -> int:
    """How many tokens the compiled model writes greedily as the original does, of NEW_TOKENS."""
    settings = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False}
    written = [each.generate(ids, **settings)[0, ids.shape[1] :].tolist() for each in (model, compiled)]
    different = (i for i, (a, b) in enumerate(zip(*written, strict=True)) if a != b)
    return next(different, NEW_TOKENS)


@torch.no_grad()
def step_milliseconds(compiled: Any, ids: torch.Tensor) -> float:
    """Median of a step on full stores."""
    session, taken = compiled.session(), list[float]()
    token = compiled(ids, past_key_values=session, logits_to_keep=1).logits[:, -1:].argmax(-1)
    for _ in range(UNTIMED + STEPS):
        start = time.perf_counter()
        token = compiled(token, past_key_values=session).logits[:, -1:].argmax(-1)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[UNTIMED:]) * 1e3


def optimisations(compiled: Any) -> dict[str, str]:
    """Of each switch whether it is used, and if not why."""
    return {
        each.name: f"{each.state}: {each.reason}" if each.reason else each.state
        for each in qfpass.report(compiled).optimisations
    }


def main() -> None:
    """Write what was found as JSON."""
    tokenizer = AutoTokenizer.from_pretrained(weights_folder())
    model = AutoModelForCausalLM.from_pretrained(weights_folder(), dtype=torch.float32).eval()
    text = tokenizer(essays_text()[:60000], return_tensors="pt", verbose=False).input_ids
    whole = qfpass.compile(model, ratio=1, context_length=CONTEXT)
    alike = tokens_alike(model, whole, text[:, :PROMPT])
    print(f"{alike} of {NEW_TOKENS} greedy tokens are alike", flush=True)
    compiled = qfpass.compile(model, ratio=RATIO, score="recency")
    step = step_milliseconds(compiled, text[:, :READ])
    found = {"tokens_alike": alike, "of": NEW_TOKENS, "step": step, "optimisations": optimisations(compiled)}
    print(found)
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
