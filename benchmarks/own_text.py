"""How much text of its own a model needs for Q-Filters: `python benchmarks/own_text.py OUT`, some minutes.

SmolLM2-135M in float32 writes rows of tokens, as `qfpass.compile` lets a model without filters do. Q-Filters
of fewer and shorter rows are compared, by the cosine of each head's two filters, with those of 20 x 512
tokens of essays. All start at positions spread over 8,192.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import qfpass
from qfpass.attention.find import find_attentions
from qfpass.capture.export import capture
from qfpass.filters.calibrate import calibrate_captured
from qfpass.filters.self_written import random_starts, write_text
from qfpass.graph.captured import id_limit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from assets import essays_text, weights_folder

CONTEXT, ROWS, TOKENS = 8192, 20, 512  # the yardstick's
WRITTEN = {(16, 64): (64, 32, 16), (32, 32): (32, 16, 8), (64, 16): (16, 12, 8)}  # of which so many tokens


def main() -> None:
    """See the module."""
    model = AutoModelForCausalLM.from_pretrained(weights_folder(), dtype=torch.float32).eval()
    text = AutoTokenizer.from_pretrained(weights_folder())(essays_text(), verbose=False).input_ids
    captured = capture(model)
    attentions, rows = find_attentions(captured, None), list[dict[str, Any]]()

    def filters_of(ids: torch.Tensor) -> qfpass.QFilters:
        return calibrate_captured(
            captured, attentions, [ids], sequence_length=ids.shape[1], context_length=CONTEXT, source={},
            progress=False,
        )  # fmt: skip

    starts = range(0, len(text) - TOKENS, len(text) // ROWS)
    yardstick = filters_of(torch.tensor([text[start : start + TOKENS] for start in starts][:ROWS]))

    def note(name: str, ids: torch.Tensor, seconds: float | None = None) -> None:
        pairs = zip(yardstick.filters, filters_of(ids).filters, strict=True)
        cosines = torch.cat([torch.cosine_similarity(a, b, dim=-1).flatten() for a, b in pairs])
        rows.append({
            "text": name, "mean": round(float(cosines.mean()), 4), "least": round(float(cosines.min()), 4),
            "heads below 0.9": int((cosines < 0.9).sum()), "seconds to write": seconds,
        })  # fmt: skip
        print(rows[-1], flush=True)

    for (count, length), parts in WRITTEN.items():
        start = time.perf_counter()
        ids = write_text(captured, attentions, random_starts(captured, count), length)
        seconds = round(time.perf_counter() - start, 1)
        for part in parts:
            note(f"written, {count} x {part}", ids[:, :part], seconds if part == length else None)
    generator = torch.Generator().manual_seed(1)
    note("random ids, 64 x 16", torch.randint(id_limit(captured.module), (64, 16), generator=generator))
    Path(sys.argv[1]).write_text(
        json.dumps({"threads": torch.get_num_threads(), "rows": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
