"""What sessions cost on SmolLM2-135M: `make sessions`, or name the parts to run.

- steps: what it costs that a step which fails can be undone.
- batch: 8 rows of different lengths written together, and each alone: the same ids, for less.
- chat: 50 turns and 20,000 tokens at 1,024 slots, past the context length of 8,192: memory turn by turn.
- fork: 20 questions about one document of 8,000 tokens, by fork() and by reading it 20 times.
"""

import argparse
import gc
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import qfpass
from qfpass.decoder.undo import Undo

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from assets import essays_text, weights_folder

SLOTS = 1024
ROWS, NEW_TOKENS = 8, 100
TURNS, CHAT_TOKENS, ANSWER = 50, 20_000, 60
DOCUMENT, QUESTIONS, QUESTION, REPLY = 8_000, 20, 16, 10


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what came of it."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def resident_bytes() -> int:
    """Memory of this process that is in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def write(model: nn.Module, session: qfpass.Session, tokens: int, **inputs: Any) -> torch.Tensor:
    """The new tokens that greedy search adds."""
    settings = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    out = model.generate(**inputs, past_key_values=session, **settings)
    return out[:, inputs["input_ids"].shape[1] :]


def steps(model: nn.Module, text: torch.Tensor) -> None:
    """A step with and without keeping what it overwrites."""
    session = model.session()
    model(text[:, :2000], past_key_values=session, logits_to_keep=1)
    token = text[:, :1]
    whole = [timed(lambda: model(token, past_key_values=session))[0] for _ in range(60)][10:]
    undo = [timed(lambda: Undo(session, model.qfpass_decoder.watch, [1], moves=False))[0] for _ in range(60)][
        10:
    ]
    whole_ms, undo_ms = (1000 * statistics.median(times) for times in (whole, undo))
    print(f"a step takes {whole_ms:.1f} ms, of which keeping what it overwrites {undo_ms:.2f} ms")


def batch(model: nn.Module, text: torch.Tensor) -> None:
    """Before any eviction, during it, and after."""
    for name, budget, lengths in (
        ("nothing evicted", SLOTS, range(20, 20 + 15 * ROWS, 15)),
        ("evicting on the way", 128, range(20, 20 + 15 * ROWS, 15)),
        ("evicted before", 64, range(70, 70 + 15 * ROWS, 15)),
    ):
        rows = [text[0, 500 * i : 500 * i + n] for i, n in enumerate(lengths)]
        longest = max(lengths)
        ids = torch.zeros(ROWS, longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, longest - len(row) :], mask[i, longest - len(row) :] = row, 1

        def together(inputs: dict[str, Any], budget: int = budget) -> torch.Tensor:
            return write(model, model.session(budget=budget), NEW_TOKENS, **inputs)

        inputs = {"input_ids": ids, "attention_mask": mask}
        together(inputs)  # compiles what is missing
        seconds, made = timed(lambda inputs=inputs: together(inputs))
        alone, equal = 0.0, 0
        for row, written in zip(rows, made, strict=True):
            own = {"input_ids": row[None]}
            took, wanted = timed(lambda own=own: together(own))
            alone, equal = alone + took, equal + int(torch.equal(written, wanted[0]))
        print(
            f"{name}: {equal} of {ROWS} rows write what they write alone; {seconds:.1f} s together, "
            f"{alone:.1f} s one by one: {seconds / alone:.2f}"
        )


def chat(model: nn.Module, text: torch.Tensor) -> None:
    """Memory after each turn; the first ten warm the allocator."""
    session, at, memory = model.session(), 0, list[int]()
    asked = CHAT_TOKENS // TURNS - ANSWER
    for turn in range(TURNS):
        ids = text[:, at : at + asked]
        at += asked
        mask = torch.ones(1, session.columns + asked, dtype=torch.long)
        write(model, session, ANSWER + 1, input_ids=ids, attention_mask=mask)
        gc.collect()
        memory.append(resident_bytes())
        if turn % 10 == 9:
            print(f"turn {turn + 1}: {session.tokens_seen} tokens, {memory[-1] / 2**20:.0f} MiB", flush=True)
    tail = memory[9:]
    print(
        f"{TURNS} turns, {session.tokens_seen} tokens, {session.nbytes / 2**20:.1f} MiB of stores: from the "
        f"tenth turn on memory stays within {100 * (max(tail) / min(tail) - 1):.2f}%"
    )


def fork(model: nn.Module, text: torch.Tensor) -> None:
    """One full run is measured twice, for twenty would only take longer."""
    document = text[:, :DOCUMENT]
    questions = [text[:, at : at + QUESTION] for at in range(9000, 9000 + 50 * QUESTIONS, 50)]

    def read() -> qfpass.Session:
        session = model.session()
        model(document, past_key_values=session, logits_to_keep=1)
        return session

    def ask(session: qfpass.Session, question: torch.Tensor) -> torch.Tensor:
        mask = torch.ones(1, session.columns + QUESTION, dtype=torch.long)
        return write(model, session, REPLY, input_ids=question, attention_mask=mask)

    def by_fork() -> list[torch.Tensor]:
        session = read()
        return [ask(session.fork(), question) for question in questions]

    ask(read(), questions[0])
    seconds, answers = timed(by_fork)
    full = [timed(lambda q=q: ask(read(), q)) for q in questions[:2]]
    equal = all(torch.equal(a, b) for (_, a), b in zip(full, answers, strict=False))
    whole = QUESTIONS * statistics.mean(took for took, _ in full)
    print(
        f"{QUESTIONS} questions on {DOCUMENT} tokens: {seconds:.1f} s by fork, {whole:.1f} s by reading "
        f"{QUESTIONS} times ({seconds / whole:.3f}); the same answers: {equal}"
    )


PARTS = {"steps": steps, "batch": batch, "fork": fork, "chat": chat}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="all by default")
    chosen = parser.parse_args().parts or list(PARTS)
    model = AutoModelForCausalLM.from_pretrained(weights_folder(), dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(weights_folder())
    text = tokenizer(essays_text()[:150_000], return_tensors="pt", verbose=False).input_ids
    compiled = qfpass.compile(model, budget=SLOTS, score="recency", overflow="rerotate", verify=False)
    with torch.no_grad():
        for name in chosen:
            PARTS[name](compiled, text)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{qfpass.report(compiled).graphs_compiled} graphs; at most {peak / 2**20:.2f} GiB in all")


if __name__ == "__main__":
    main()
