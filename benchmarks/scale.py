"""What models of 8 to 405 billion weights need on eight GPUs, on paper: `python benchmarks/scale.py`.

It writes the tables of docs/scale.md, from the models' shapes and the GPU's published figures; nothing runs.
A model is split as transformers' own tensor parallelism does it: projections by heads and columns, embedding
and head by tokens; norms are on every rank.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from records import DOCS
from tables import MARKED, table
from transformers import LlamaConfig

from qfpass.store.kv_form import KVForm
from qfpass.store.slots import SLOT_NBYTES, Slots
from qfpass.store.store_kind import token_nbytes

PAGE = DOCS / "scale.md"
RANKS, CONTEXT, RATIO = 8, 131072, 8
# An H100 SXM as NVIDIA states it: bytes of memory, bytes that it reads a second, and bytes that it sends.
MEMORY, BANDWIDTH, SENT = 80e9, 3.35e12, 450e9
COLLECTIVE = 10e-6  # seconds before a collective's first byte, assumed
ROOM = 0.9  # of the memory, for weights and stores


def _llama(hidden: int, inner: int, layers: int, heads: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=128256, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=8, head_dim=128, max_position_embeddings=CONTEXT,
    )  # fmt: skip


@dataclass(frozen=True)
class Split:
    """One model of this shape split over the ranks, its weights in `weight_nbytes` bytes each."""

    name: str
    config: LlamaConfig
    weight_nbytes: int = 2

    @property
    def split_weights(self) -> int:
        """The number of weights that a rank has a share of."""
        c: Any = self.config
        attention = c.hidden_size * c.head_dim * 2 * (c.num_attention_heads + c.num_key_value_heads)
        inner = 3 * c.hidden_size * c.intermediate_size
        return c.num_hidden_layers * (attention + inner) + c.vocab_size * c.hidden_size

    @property
    def embedding(self) -> int:
        """The weights of the embedding, of which a step reads a row."""
        return self.config.vocab_size * self.config.hidden_size

    @property
    def norms(self) -> int:
        """The weights of norms."""
        return (2 * self.config.num_hidden_layers + 1) * self.config.hidden_size

    @property
    def weights(self) -> int:
        """The number of all weights."""
        return self.split_weights + self.embedding + self.norms

    @property
    def read_nbytes(self) -> float:
        """Bytes of weights that a rank reads in a step."""
        return self.weight_nbytes * self.split_weights / RANKS + 2 * self.norms

    @property
    def held_nbytes(self) -> float:
        """Bytes of weights that a rank holds."""
        return self.read_nbytes + 2 * self.embedding / RANKS

    def cache_nbytes(self, ratio: int) -> int:
        """Bytes a rank of one row's keys and values: of all tokens for a ratio of 1, else of stores."""
        heads = self.config.num_key_value_heads // RANKS
        form = KVForm(heads, 128, 128, torch.bfloat16, torch.device("meta"))
        slot = token_nbytes(Slots, form) + (heads * SLOT_NBYTES if ratio > 1 else 0)
        return self.config.num_hidden_layers * CONTEXT // ratio * slot

    def rows_that_fit(self, ratio: int) -> int:
        """Rows of a full context beside the weights."""
        return max(0, int((ROOM * MEMORY - self.held_nbytes) // self.cache_nbytes(ratio)))

    def step(self, rows: int, ratio: int) -> tuple[float, float]:
        """Bytes that a rank reads in a step of rows that have seen a full context, and the step's seconds."""
        nbytes = self.read_nbytes + rows * self.cache_nbytes(ratio)
        return nbytes, nbytes / BANDWIDTH + self.collectives(rows)

    def collectives(self, rows: int) -> float:
        """Seconds of a step: all-reduces after the embedding and each part of a layer, the head's gather."""
        count, share = 2 * self.config.num_hidden_layers + 2, (RANKS - 1) / RANKS
        reduced = (count - 1) * 2 * share * rows * 2 * self.config.hidden_size
        gathered = share * rows * 2 * self.config.vocab_size
        return count * COLLECTIVE + (reduced + gathered) / SENT


MODELS = (
    Split("Llama-3.1-8B", _llama(4096, 14336, 32, 32)),
    Split("Llama-3.1-70B", _llama(8192, 28672, 80, 64)),
    Split("Llama-3.1-405B", _llama(16384, 53248, 126, 128)),
    Split("Llama-3.1-405B, weights in 8 bits", _llama(16384, 53248, 126, 128), weight_nbytes=1),
)
GIB = 2**30


def memory() -> str:
    """Bytes that a rank holds."""
    rows = [
        (
            m.name, f"{m.weights / 1e9:.1f}", f"{m.held_nbytes / GIB:.1f}",
            *(f"{m.cache_nbytes(ratio) / GIB:.2f}" for ratio in (1, RATIO)),
            *(m.rows_that_fit(ratio) or "none" for ratio in (1, RATIO)),
        )
        for m in MODELS
    ]  # fmt: skip
    head = ("a rank of eight", "10^9 weights", "weights, GiB", "full cache, GiB", f"{RATIO}x store, GiB")
    return table((*head, "rows that fit, full cache", f"rows, {RATIO}x"), rows)


def steps() -> str:
    """Bytes that a rank reads, and what they take."""
    rows = []
    for m in MODELS:
        if not m.rows_that_fit(RATIO):
            continue
        for count in sorted({1, m.rows_that_fit(1), m.rows_that_fit(RATIO)}):
            cells: list[str] = []
            for ratio in (1, RATIO):
                if count > m.rows_that_fit(ratio):
                    cells += ["", "doesn't fit", ""]
                    continue
                nbytes, seconds = m.step(count, ratio)
                cells += [f"{nbytes / 1e9:.1f}", f"{1000 * seconds:.1f}", f"{count / seconds:,.0f}"]
            rows.append((m.name, count, f"{1000 * m.collectives(count):.1f}", *cells))
    head = (
        "eight ranks", "rows", "collectives, ms", "full cache: GB read", "ms a step", "tokens/s",
        f"{RATIO}x: GB read", "ms a step", "tokens/s",
    )  # fmt: skip
    return table(head, rows)


def captured() -> str:
    """What `scale_capture.py` measured."""
    records = json.loads((DOCS / "performance" / "scale_capture.json").read_text())
    rows = [
        (r["model"], r["layers"], r["query_heads"], r["kv_heads"], f"{r['seconds']:.0f}", f"{r['gib']:.1f}")
        for r in records
    ]
    head = ("model", "layers", "query heads a rank", "key heads a rank", "seconds", "GiB of the process")
    return table(head, rows)


MAKERS = {"memory of ranks": memory, "steps of ranks": steps, "capture of ranks": captured}


def with_tables(text: str) -> str:
    """The page's text with its tables made anew."""
    return MARKED.sub(lambda found: f"{found[1]}\n{MAKERS[found[2]]()}\n{found[3]}", text)


def main(page: Path = PAGE) -> None:
    """Write the tables into the page."""
    page.write_text(with_tables(page.read_text()))


if __name__ == "__main__":
    main()
