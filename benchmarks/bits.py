"""What few bits cost: `python benchmarks/bits.py OUT`, some eight minutes on two cores.

For SmolLM2-135M and Qwen2.5-Coder-0.5B (`python examples/fetch_weights.py --qwen`), with every key kept: how
far next-token predictions over stores of few bits are from those over stores in float32, in nats a token, and
what that does to the perplexity of the text. With keys as they are and smoothed, on text that the model
writes itself, as `qfpass.compile` measures it, and on an essay.
"""

import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from qfpass.attention.find import find_attentions
from qfpass.capture.decoder_call import own_context_length
from qfpass.capture.export import capture
from qfpass.choose_store import CANDIDATES, ROWS, TOKENS, predictions
from qfpass.filters.read_smoothing import read_smoothing
from qfpass.filters.self_written import OwnText

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from assets import essays_text, qwen_folder, weights_folder

ESSAY_TOKENS, ESSAY_FROM = 1024, 200_000  # tokens; characters of all essays before them


@torch.no_grad()
def rows_of(folder: Path) -> list[dict[str, object]]:
    """A row for each text, kind of store, and keys smoothed or not."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    captured = capture(model)
    attentions = find_attentions(captured, None)
    length = own_context_length(model) or ESSAY_TOKENS
    factors = read_smoothing(captured, attentions, length)
    essay = tokenizer(essays_text()[ESSAY_FROM : ESSAY_FROM + 8 * ESSAY_TOKENS]).input_ids[:ESSAY_TOKENS]
    own = OwnText(captured, attentions, length).joined(ROWS, TOKENS)
    texts = {"own": own, "essay": torch.tensor([essay])}
    found = list[dict[str, object]]()
    for text, ids in texts.items():
        exact = predictions(captured, attentions, ids, None)
        for kind in CANDIDATES:
            for smoothed in (False, True):
                said = predictions(captured, attentions, ids, kind, factors if smoothed else None)
                nats = (exact.exp() * (exact - said)).sum(-1).mean()
                worse = (exact - said)[:, :-1].gather(-1, ids[:, 1:, None]).mean().exp() - 1
                found.append({
                    "model": folder.name, "text": text, "kind": str(kind), "smoothed": smoothed,
                    "nats": round(float(nats), 5), "perplexity": f"{float(worse):+.2%}",
                })  # fmt: skip
                print(found[-1], flush=True)
    return found


def main() -> None:
    start = time.time()
    rows = [row for folder in (weights_folder(), qwen_folder()) for row in rows_of(folder)]
    Path(sys.argv[1]).write_text(json.dumps({"rows": rows, "seconds": round(time.time() - start)}, indent=1))


if __name__ == "__main__":
    main()
