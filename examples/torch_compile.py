"""Real weights through torch.compile's own interface: read 3,000 tokens, then write 40 greedily."""

import torch
from assets import essays_text, weights_folder
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

import qfpass

READ, WRITE = 3_000, 40


@torch.no_grad()
def main() -> None:
    """Print what the bounded model writes, and what it holds."""
    tokenizer = AutoTokenizer.from_pretrained(weights_folder())
    model = AutoModelForCausalLM.from_pretrained(weights_folder()).eval()
    compiled = torch.compile(model, backend="qfpass", dynamic=True, options={"ratio": 8})
    ids = tokenizer(essays_text(), return_tensors="pt").input_ids[:, :READ]
    written = list[int]()
    with qfpass.session() as session:
        while len(written) < WRITE:
            seen = session.tokens_seen
            positions = torch.arange(seen, seen + ids.shape[1])[None]
            logits = compiled(ids, position_ids=positions, use_cache=False).logits
            ids = logits[:, -1:].argmax(-1)
            written.append(int(ids))
    console = Console()
    console.print(tokenizer.decode(written), markup=False)
    console.print(f"{session.tokens_seen:,} tokens seen, {session.nbytes / 2**20:.1f} MiB of stores")
    console.print(str(qfpass.report(session.model)).splitlines()[0], markup=False)


if __name__ == "__main__":
    main()
