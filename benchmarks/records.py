"""What the records below docs say, of which tables and pictures are made."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
EAGER, STATIC = "DynamicCache, eager", "StaticCache, torch.compile"
BOUNDED = "qfpass, 1024 slots"
RECENCY, DEFAULT, TUNED = "recency None", "published int8-int4", "tuned int8-int4"


def record(name: str) -> Any:
    """A record below docs, by its path without `.json`."""
    return json.loads((DOCS / f"{name}.json").read_text())


def figure(name: str, contender: str, tokens: int, measure: str = "decode", batch: int = 1) -> float | None:
    """One figure of `qfpass bench`'s record; None if it wasn't measured."""
    for each in record(f"performance/{name}")["figures"]:
        if (each["measure"], each["contender"], each["tokens"], each["batch"]) == (
            measure, contender, tokens, batch,
        ):  # fmt: skip
            return float(each["value"])
    return None


def evaluated(name: str, row: str, measure: str) -> tuple[float, float]:
    """A mean and its standard error from `qfpass evaluate`'s record."""
    (found,) = (each for each in record(f"quality/{name}")["rows"] if each["name"] == row)
    mean, error = found["measures"][measure]
    return mean, error


def held(name: str, row: str) -> float:
    """MiB of keys and values that a row of such a record held."""
    (found,) = (each for each in record(f"quality/{name}")["rows"] if each["name"] == row)
    return float(found["footprint"]["nbytes"]) / 2**20


def over_full(model: str, row: str) -> str:
    """How much more perplexity a row of `benchmarks/same_bytes.py` has than the full cache."""
    found = [e for e in record(f"quality/same_bytes/{model}")["rows"] if e["row"] == row]
    return str(found[0]["perplexity over full"]) if found else ""
