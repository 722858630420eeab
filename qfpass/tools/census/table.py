"""The census as a page: what works, what is refused and why."""

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
import transformers

from .columns import COLUMNS
from .entry import Entry, Verdict

OUTCOMES = {
    "works": "work",
    "refused": "are refused",
    "wrong": "are wrong",
    "crashed": "crash",
    "not built": "aren't built",
}
TITLES = {"causal": "Language models", "image-text": "Models of images and text"}

HOW = """\
Families of {versions}.
`make census` builds a tiny random model of each, compiles it with the eager backend and compares it with the original
in float32: the logits without eviction (read at once, in chunks, token by token, and beyond the model's window), the
tokens of greedy generation, and the logits with small stores, where the original's graph masks the evicted keys.
Nothing in `qfpass/` names a model family. `docs/tiny_models.json` holds the fields that a tiny configuration needs,
`docs/models.json` the results. `make census CENSUS="llama --column drafts"` examines one part and leaves the rest.

Where a model works, three more things are tried:

| column | yes means |
| --- | --- |
| embeddings | [`inputs_embeds`](embeddings.md) give the original's logits, also if a session reads ids and embeddings in turn |
| drafts | `prompt_lookup_num_tokens` writes what greedy decoding writes, and tokens [taken back](taking_back.md) from a full store leave no trace |
| int8 | with torchao's `Int8WeightOnlyConfig` the model compiles and gives the logits of the [quantised](quantised_weights.md) original |

"No" means that qfpass refuses it; the reasons are [at the end](#why-a-column-says-no). A wrong result would be printed
in bold. An empty cell hasn't been tried yet.
"""  # noqa: E501
OF_IMAGES = """\
Only the text decoder of these models is compiled, and it is compared on texts without images. Everything before the
decoder runs as the original's own code. [Vision-language models](vision_language.md) lists those tested with images.
A family whose model stands in the table above isn't repeated.
"""  # noqa: E501


def page(entries: Sequence[Entry]) -> str:
    """Markdown: for each kind of model the counts, a table of what works, and tables of what doesn't."""
    versions = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}, CPU"
    parts = ["# Which models work\n", HOW.format(versions=versions)]
    for kind, title in TITLES.items():
        if chosen := [entry for entry in entries if entry.kind == kind]:
            parts += [f"## {title}\n", *([OF_IMAGES] if kind == "image-text" else []), _counts(chosen)]
            parts += _tables(chosen, title)
    refused = [(e, name, answer) for e in entries for name, answer in e.answers.items() if answer.note]
    if refused:
        rows = [(e.family, e.model, name, _told(answer)) for e, name, answer in refused]
        parts += ["## Why a column says no\n", _table(("family", "model", "column", "why"), rows)]
    return "\n".join(parts)


def _counts(entries: Sequence[Entry]) -> str:
    found = Counter(entry.outcome for entry in entries)
    says = [f"{outcome} {found[outcome]}" for outcome in OUTCOMES if found[outcome]]
    answers = [(name, answer) for entry in entries for name, answer in entry.answers.items()]
    tried = Counter(name for name, _ in answers)
    yes = Counter(name for name, answer in answers if answer.outcome == "yes")
    columns = ", ".join(f"{name} {yes[name]} of {tried[name]}" for name in COLUMNS)
    return f"Of {len(entries)} families: {', '.join(says)}. Yes in each column: {columns}.\n"


def _tables(entries: Sequence[Entry], title: str) -> Iterator[str]:
    for outcome, words in OUTCOMES.items():
        chosen = [entry for entry in entries if entry.outcome == outcome]
        if chosen and outcome == "works":
            yield _working(chosen)
        elif chosen:
            yield f"### {title} that {words}\n"
            yield _table(("family", "model", "why"), [(e.family, e.model, e.note) for e in chosen])


def _working(entries: Sequence[Entry]) -> str:
    """Attentions are those of the tiny model."""
    rows = [
        (e.family, e.model, str(e.sites), "; ".join(e.spans), *(_cell(e.answers.get(n)) for n in COLUMNS))
        for e in entries
    ]
    return _table(("family", "model", "attentions", "what they see", *COLUMNS), rows)


def _cell(answer: Verdict | None) -> str:
    """Whatever isn't refused is a defect, and stands out."""
    if answer is None:
        return ""
    return {"yes": "yes", "refused": "no"}.get(answer.outcome, f"**{answer.outcome}**")


def _told(answer: Verdict) -> str:
    return answer.note if answer.outcome == "refused" else f"**{answer.outcome}**: {answer.note}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)
