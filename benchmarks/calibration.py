"""How much text Q-Filters need, and which: filters of many calibrations against each other.

`python benchmarks/calibration.py OUT`: 20 x 2,048 tokens of essays, which start at positions spread over the
model's 8,192, are the yardstick for fewer of them; for the same in the paper's set-up, all at position 0; for
another kind of text, the manual that Python's `help()` shows; and text that the model wrote itself. A cosine
is of two filters of one head. Perplexity is of held-out essays, 2 x 2,048 tokens streamed into 256 slots, the
first 256 not counted. OUT/calibration.json has all.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from pydoc_data.topics import topics

from assets import weights_folder
from quality import DEVELOPMENT, HELD_OUT, essays, training_text
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

import qfpass
from qfpass.tools import evaluate
from qfpass.tools.evaluate import Method
from qfpass.tools.evaluate.protocol import Bounded

SEQUENCES, TOKENS = 20, 2048
FEWER = (2, 5)
KINDS = (f"essays, {SEQUENCES}", "Python", "written", "at position 0")  # whose perplexity is measured
AT_0 = f"at position 0, {SEQUENCES} x {TOKENS:,}"
SLOTS = 256
OWN_ROWS, OWN_TOKENS = 8, 256  # what `qfpass.compile` lets a model write when it finds no filters


def texts_of(model: Any, tokenizer: Any) -> dict[str, torch.Tensor]:
    """Ids [rows, tokens] by name, the yardstick first."""
    text = training_text() + essays(DEVELOPMENT)
    read = evaluate.token_rows(tokenizer, text, tokens=TOKENS, rows=SEQUENCES, seed=0)
    manual = evaluate.token_rows(
        tokenizer, "\n\n".join(topics.values()), tokens=TOKENS, rows=SEQUENCES, seed=0
    )
    chosen = {f"essays, {SEQUENCES} x {TOKENS:,}": read}
    chosen |= {f"essays, {n} x {TOKENS:,}": read[:n] for n in FEWER}
    chosen[AT_0] = read
    chosen[f"Python manual, {SEQUENCES} x {TOKENS:,}"] = manual
    chosen[f"written by the model, {OWN_ROWS} x {OWN_TOKENS}"] = written_by(model)
    return chosen


def written_by(model: Any) -> torch.Tensor:
    """Text sampled from the model at temperature 1, each row from a random token."""
    torch.manual_seed(0)
    first = torch.randint(model.config.vocab_size, (OWN_ROWS, 1))
    sampled = {"do_sample": True, "temperature": 1.0, "top_k": 0, "min_new_tokens": OWN_TOKENS - 1}
    return model.generate(first, max_new_tokens=OWN_TOKENS - 1, pad_token_id=0, **sampled)


def cosines(one: qfpass.QFilters, other: qfpass.QFilters) -> torch.Tensor:
    """Of each layer's and head's two filters, [layers, heads]."""
    pairs = zip(one.filters, other.filters, strict=True)
    return torch.stack([torch.cosine_similarity(a, b, dim=-1) for a, b in pairs])


def perplexities(model: Any, rows: torch.Tensor, made: dict[str, qfpass.QFilters]) -> dict[str, float]:
    """Of the full cache, of recency and of the published score with each of the filters."""
    models: dict[str, Any] = {"full cache": model, "recency": Bounded(model, Method("recency", budget=SLOTS))}
    for name, filters in made.items():
        models[name] = Bounded(model, Method("published", budget=SLOTS), {"filters": filters})
    return {n: evaluate.perplexity(each, rows, first=SLOTS).perplexity for n, each in models.items()}


def main() -> None:
    """See the module."""
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    model = AutoModelForCausalLM.from_pretrained(weights_folder(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(weights_folder())
    table = Table("text", "seconds", "mean", "median", "least", "heads below 0.9")
    yardstick, record, made = None, [], dict[str, qfpass.QFilters]()
    for name, ids in texts_of(model, tokenizer).items():
        start = time.perf_counter()
        covered = ids.shape[1] if name == AT_0 else None
        filters = qfpass.calibrate(model, list(ids), context_length=covered, description=name, progress=False)
        seconds = time.perf_counter() - start
        filters.save(out / name.replace(" ", "-").replace(",", ""))
        yardstick, made[name] = yardstick or filters, filters
        each = cosines(yardstick, filters).flatten()
        row = {"mean": each.mean(), "median": each.median(), "least": each.min(), "below": (each < 0.9).sum()}
        record.append({"text": name, "seconds": seconds, "cosines": each.tolist()})
        numbers = (f"{row[key]:.4f}" for key in ("mean", "median", "least"))
        table.add_row(name, f"{seconds:.0f}", *numbers, f"{int(row['below'])} of {len(each)}")
    Console(width=110).print(table)
    rows = evaluate.token_rows(tokenizer, essays(HELD_OUT), tokens=TOKENS, rows=2, seed=0)
    kinds = {name: made[name] for name in made if name.startswith(KINDS)}
    kept = perplexities(model, rows, kinds)
    print(*(f"{name}: {value:.3f}" for name, value in kept.items()), sep="\n")
    (out / "calibration.json").write_text(json.dumps({"cosines": record, "perplexity": kept}, indent=1))


if __name__ == "__main__":
    main()
