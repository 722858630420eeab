"""`qfpass check`: what a ratio gives and costs on one model: memory, speed, perplexity and needles."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from ...capture.decoder_call import own_context_length
from ...errors import InputError
from ...model.compiled_decoder import CompiledDecoder
from ...pipeline import compile
from ...reporting import Report, report
from ...training.self_texts import MOST_LIKELY, openings
from ...waits import Wait
from ..bench.timing import take_turns
from .needle_test import needle
from .streamed_perplexity import Perplexity, perplexity
from .text_reader import open_reader
from .texts import token_rows

ROWS, ROOM = 4, 256  # texts that perplexity reads; tokens for questions and answers after a text
FULL, BOUNDED = "full cache", "bounded store"
STEPS, SECONDS = 40, 20.0  # of the timing: the most steps, and seconds after which no more are begun


@dataclass(frozen=True)
class Measured:
    """What one model does with texts of so many tokens.

    Attributes:
        nbytes: bytes of the keys and values that it holds of one text.
        step: seconds of a token, the median.
        perplexity: over all texts, the first tokens not counted.
        found: needles that it gave back whole.
    """

    nbytes: int
    step: float
    perplexity: Perplexity
    found: int


@dataclass(frozen=True)
class Check:
    """The full cache beside bounded stores; prints as a table."""

    tokens: int
    needles: int
    full: Measured
    bounded: Measured
    compiled: Report

    def __rich__(self) -> Table:
        slots = self.bounded.perplexity.footprint.slots
        stored = ", ".join(sorted({site.stored for site in self.compiled.sites}))
        table = Table(title=f"texts of {self.tokens:,} tokens; {slots} slots a head, stored in {stored}")
        for column in ("", "full cache", "bounded", ""):
            table.add_column(column, justify="right")
        full, bounded = self.full, self.bounded
        rows = (
            ("keys and values, MiB", full.nbytes / 2**20, bounded.nbytes / 2**20, "{:.2f}", "{:.2f}x"),
            ("a token, ms", full.step * 1e3, bounded.step * 1e3, "{:.1f}", "{:.2f}x"),
            ("perplexity", full.perplexity.perplexity, bounded.perplexity.perplexity, "{:.2f}", "{:.3f}x"),
            (f"needles found, of {self.needles}", full.found, bounded.found, "{:.0f}", "{:.2f}x"),
        )
        for name, whole, part, form, times in rows:
            ratio = times.format(part / whole) if whole else ""
            table.add_row(name, form.format(whole), form.format(part), ratio)
        return table

    def __str__(self) -> str:
        console = Console(width=80)
        with console.capture() as captured:
            console.print(self)
        return captured.get().rstrip()


def check(
    model: nn.Module,
    tokenizer: Any,
    *,
    ratio: float = 8,
    text: str | None = None,
    tokens: int = 1024,
    needles: int = 20,
    seed: int = 0,
    backend: Any = "inductor",
    progress: bool = True,
) -> Check:
    """Compile `model` for texts of so many tokens, and measure it beside the full cache.

    Args:
        model: a Hugging Face decoder in eval mode.
        text: what perplexity reads and needles are hidden in; by default the model writes some.
        needles: at depths spread over the text, half as many depths as needles.
        progress: say what is being done.

    Raises:
        InputError: the text is too short for `ROWS` pieces of so many tokens.
        QFPassError: the model isn't supported, or the ratio is too great.
    """
    if needles < 2 or tokens < 64:
        raise InputError(f"check needs two needles and 64 tokens at least, not {needles} and {tokens}.")
    with Wait(f"checking {ratio:g}x on texts of {tokens:,} tokens", "some minutes", shown=progress):
        length = min(tokens + ROOM, own_context_length(model) or tokens + ROOM)
        # The store is so many times smaller than the text alone.
        compiled = compile(model, ratio=ratio * length / tokens, context_length=length, backend=backend)
        if text is None:
            with Wait(f"the model writes {ROWS + 1} texts of {tokens:,} tokens", shown=progress):
                text = own_text(model, tokenizer, tokens, seed)
        rows = token_rows(tokenizer, text, tokens=tokens, rows=ROWS, seed=seed)
        found = report(compiled)
        first = min(tokens // 2, max(site.slots for site in found.sites))
        with Wait("timing steps", shown=progress):
            steps = _steps(model, compiled, rows[:1])

        def measured(name: str, each: nn.Module) -> Measured:
            with Wait(f"measuring the {name}", shown=progress):
                read = perplexity(each, rows, first=first, progress=progress)
                answers = needle(
                    each, tokenizer, text, lengths=(tokens,), depths=needles // 2, needles=2, seed=seed,
                    progress=progress,
                ).answers  # fmt: skip
            return Measured(read.footprint.nbytes, steps[name], read, sum(a.exact for a in answers))

        full, bounded = measured(FULL, model), measured(BOUNDED, compiled)
    return Check(tokens, 2 * (needles // 2), full, bounded, found)


@torch.no_grad()
def own_text(model: Any, tokenizer: Any, tokens: int, seed: int) -> str:
    """Texts of several kinds that the model writes, joined: some more than `ROWS` times `tokens`."""
    ids = torch.tensor(openings(tokenizer, ROWS + 1, Random(seed)), device=model.device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        written = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=MOST_LIKELY,
            min_new_tokens=tokens, max_new_tokens=tokens,
        )  # fmt: skip
    return "\n\n".join(tokenizer.decode(row, skip_special_tokens=True) for row in written.tolist())


def _steps(model: nn.Module, compiled: CompiledDecoder, ids: torch.Tensor) -> dict[str, float]:
    """The median seconds of a token after ids [1, S], for both models in turn."""
    last, readers = ids[:, -1:], {}
    for name, each in ((FULL, model), (BOUNDED, compiled)):
        readers[name] = open_reader(each, ids.shape[1])
        readers[name].prefill(ids)

    def ready(name: str) -> Callable[[], object]:
        return partial(readers[name].read, last)

    calls = {name: partial(ready, name) for name in readers}
    taken = take_turns(calls, rounds=STEPS, seconds=SECONDS, device=ids.device)
    return {name: timing.median for name, timing in taken.items()}
