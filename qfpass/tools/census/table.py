"""The census as a page: what works, what is refused and why."""

from collections.abc import Sequence

import torch
import transformers

from .examine import Entry

OUTCOMES = {
    "works": "Works",
    "refused": "Refused",
    "wrong": "Wrong",
    "crashed": "Crashed",
    "not built": "Not built: no tiny model could be made",
}

HOW = """\
Made by `make census`, which builds a tiny random model of each, compiles it with the eager backend
and compares it in float32: its logits without eviction (read at once, in chunks, token by token,
beyond its window), greedy generation, and its logits with small stores, against its own graph with
the evicted keys masked. Nothing in `qfpass/` names a model family; fields that a tiny
configuration can't do without are in `docs/models.json`.
"""


def page(entries: Sequence[Entry]) -> str:
    """Markdown: a summary and a table for each outcome that occurs."""
    found = {outcome: _count(entries, outcome) for outcome in OUTCOMES}
    counts = [f"{count} {outcome.removesuffix('s')}" for outcome, count in found.items() if count]
    parts = [
        "# Which models work\n",
        f"Of the {len(entries)} entries of transformers {transformers.__version__}'s causal language models, "
        f"{', '.join(counts)} (torch {torch.__version__.split('+')[0]}, CPU).\n",
        HOW,
    ]
    for outcome, title in OUTCOMES.items():
        chosen = [entry for entry in entries if entry.outcome == outcome]
        if chosen:
            parts += [f"## {title}\n", _working(chosen) if outcome == "works" else _reasons(chosen)]
    return "\n".join(parts)


def _count(entries: Sequence[Entry], outcome: str) -> int:
    return sum(entry.outcome == outcome for entry in entries)


def _working(entries: Sequence[Entry]) -> str:
    """Attentions are those of the tiny model."""
    rows = [(e.family, e.model, str(e.sites), "; ".join(e.spans)) for e in entries]
    return _table(("family", "model", "attentions", "what they see"), rows)


def _reasons(entries: Sequence[Entry]) -> str:
    return _table(("family", "model", "why"), [(e.family, e.model, e.note) for e in entries])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
