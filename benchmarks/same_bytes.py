"""Stores of equal bytes on held-out essays: `python benchmarks/same_bytes.py MODEL OUT`, ten minutes.

MODEL is smollm2 or qwen. Every row has an eighth (--ratio) of the bytes of a bfloat16 cache of the text,
scores and positions counted, so fewer bits hold more slots. Four essays of 2,048 tokens (--tokens) are read
in pieces of 16 past the first ones, of which there are as many as slots of the float store. "tuned" needs
`qfpass tune`, or --filters.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

import qfpass
from qfpass.config import STORE_KINDS
from qfpass.filters import load_filters
from qfpass.store.kv_form import KVForm
from qfpass.store.slots import SLOT_NBYTES
from qfpass.store.store_kind import token_nbytes

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from assets import essays_folder, qwen_folder, weights_folder

ROWS = (
    "recency None",
    "published None",
    "recency int8-int4",
    "published int8-int4",
    "tuned int8",
    "tuned int8-int4",
)
TEXTS, PIECE = 4, 16
KINDS = {str(name).removeprefix("torch."): name for name in STORE_KINDS}


def slots_in(kind: str, tokens: int, ratio: float, config: Any) -> int:
    """Slots a head in 1 / `ratio` of the bytes of a bfloat16 cache of so many tokens."""
    dim = config.hidden_size // config.num_attention_heads
    form = KVForm(1, dim, dim, torch.bfloat16, torch.device("cpu"))
    full, one = (token_nbytes(STORE_KINDS[KINDS[k]], form) + SLOT_NBYTES for k in ("None", kind))
    return int(tokens * full / ratio / one)


@torch.no_grad()
def nats(model: Any, ids: torch.Tensor, first: int, cache: Any) -> torch.Tensor:
    """Negative log-likelihood a token of each text [B], the first tokens not counted."""
    total, at = torch.zeros(len(ids), dtype=torch.float64), 0
    while at < ids.shape[1] - 1:
        end = min(first if at < first else at + PIECE, ids.shape[1] - 1)
        logits = model(input_ids=ids[:, at:end], past_key_values=cache).logits
        if at >= first:
            losses = F.cross_entropy(
                logits.flatten(0, 1), ids[:, at + 1 : end + 1].flatten(), reduction="none"
            )
            total += losses.view(len(ids), -1).double().sum(1)
        at = end
    return total / (ids.shape[1] - 1 - first)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=["smollm2", "qwen"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--ratio", type=float, default=8)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--filters", help="trained filters for the tuned rows; else what `qfpass tune` made")
    parser.add_argument("--rows", nargs="+", default=ROWS)
    asked = parser.parse_args()
    folder = weights_folder() if asked.model == "smollm2" else qwen_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    essays = (tokenizer(path.read_text()).input_ids for path in sorted(essays_folder().glob("*.txt")))
    long = [ids[: asked.tokens] for ids in essays if len(ids) >= asked.tokens]
    ids = torch.tensor(long[1 : TEXTS + 1])
    first = slots_in("None", asked.tokens, asked.ratio, model.config)
    whole = qfpass.compile(model, backend="eager", verify=False, context_length=asked.tokens)
    exact = nats(whole, ids, first, whole.session())
    rows = list[dict[str, Any]]()
    for row in asked.rows:
        start, (score, kind) = time.time(), row.split()
        filters = load_filters(asked.filters) if score == "tuned" and asked.filters else None
        compiled = qfpass.compile(
            model, budget=slots_in(kind, asked.tokens, asked.ratio, model.config), store_dtype=KINDS[kind],
            score="trained" if score == "tuned" else score, filters=filters, backend="eager", verify=False,
            context_length=asked.tokens,
        )  # fmt: skip
        worse = nats(compiled, ids, first, compiled.session()) - exact
        rows.append({
            "row": row, "slots": qfpass.report(compiled).sites[0].slots, "nats over full": worse.tolist(),
            "perplexity over full": f"{math.expm1(float(worse.mean())):+.2%}",
            "seconds": round(time.time() - start),
        })  # fmt: skip
        print(rows[-1], flush=True)
    record = {
        "model": folder.name,
        "ratio": asked.ratio,
        "tokens": asked.tokens,
        "texts": TEXTS,
        "first": first,
    }
    full = math.exp(float(exact.mean()))
    asked.out.write_text(json.dumps({**record, "full": full, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
