"""What prompt lookup saves on text that repeats: `python benchmarks/drafts.py [OUT]`, some minutes.

SmolLM2-135M (`make weights`) continues a piece of an essay that its prompt holds three times and a half, in
an eighth of the cache: greedy decoding beside prompt lookup of several lengths, in tokens a second, in turns.
"""

import json
import statistics
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import qfpass

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from assets import essays_text, weights_folder

TOKENS, REPEATED, ROUNDS = 128, 96, 3
LOOKUPS = (None, 4, 8, 12)  # prompt_lookup_num_tokens; None: plain greedy decoding


def repeating_prompt() -> torch.Tensor:
    """A piece of an essay three times and a half, [1, 3.5 * REPEATED]."""
    tokenizer = AutoTokenizer.from_pretrained(weights_folder())
    piece = tokenizer(essays_text()[:4000], return_tensors="pt").input_ids[:, :REPEATED]
    return torch.cat([piece, piece, piece, piece[:, : REPEATED // 2]], 1)


def seconds(model: torch.nn.Module, ids: torch.Tensor, lookup: int | None) -> tuple[float, list[int]]:
    """The time of writing TOKENS tokens after ids that a session has read, and the tokens."""
    session = model.session(take_back=(lookup or 0) + 1)
    model(ids[:, :-1], past_key_values=session, logits_to_keep=1)
    settings = {"prompt_lookup_num_tokens": lookup} if lookup else {}
    settings |= {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
    start = time.perf_counter()
    out = model.generate(ids, past_key_values=session, **settings)
    return time.perf_counter() - start, out[0, ids.shape[1] :].tolist()


def main() -> None:
    model = AutoModelForCausalLM.from_pretrained(weights_folder(), dtype=torch.float32).eval()
    model, ids = qfpass.compile(model, ratio=8, score="recency"), repeating_prompt()
    written = {lookup: seconds(model, ids, lookup)[1] for lookup in LOOKUPS}  # compiles, too
    times: dict[int | None, list[float]] = {lookup: [] for lookup in LOOKUPS}
    for _ in range(ROUNDS):
        for lookup in LOOKUPS:
            times[lookup].append(seconds(model, ids, lookup)[0])
    greedy = statistics.median(times[None])
    rows = [
        {
            "lookup": lookup or 0,
            "tokens_a_second": round(TOKENS / statistics.median(times[lookup]), 1),
            "over_greedy": round(greedy / statistics.median(times[lookup]), 2),
            "same_tokens": written[lookup] == written[None],
        }
        for lookup in LOOKUPS
    ]
    for row in rows:
        print(row)
    if sys.argv[1:]:
        Path(sys.argv[1]).write_text(json.dumps({"tokens": TOKENS, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
