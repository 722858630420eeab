"""docs/versions.md, written from what the pairs gave."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

Pair = tuple[str, str]

HEAD = """# Versions

Made by `make matrix` (benchmarks/versions), which makes an environment for each pair and runs in it the tests
of every private name that qfpass uses (`tests/upstream`, the canaries), equality with the original for any
cut of a text, sessions, `generate`, the torch.compile backend, eight families through Inductor, and
SmolLM2-135M's real weights: greedy tokens beside those that transformers writes with the uncompressed model,
and the time of a step on full stores in an eighth of the cache, beside the pinned pair's. Each time is of one
run on a processor, so a tenth more or less says nothing.
"""

OTHERS = """## Other versions

qfpass installs with anything from the oldest pair on, and with newer versions than these: compiling then
warns once that they were not tested. What is private in torch and transformers may have changed there. Where
only an optimisation uses it, the plain way runs and a warning says so; where the pass can't do without it, an
UpstreamError names what is missing. Run the canaries first: `make canaries TRANSFORMERS=...` for another
transformers, `pytest tests/upstream` beside another torch. Keep `verify=True`. If a result looks wrong or a
step slow, set `QFPASS_OFF=all`, or name switches of the table above (`QFPASS_OFF=replay,own_loops`, or for
one model `switches=qfpass.Switches(replay=False)`): the results are the same without them. Or install a pair
of this page.
"""


def write_page(
    path: Path, pairs: dict[Pair, list[str]], results: dict[Pair, Any], parts: list[str], smollm2: str
) -> None:
    """Everything that is known of the pairs, in `path`."""
    pinned = next(pair for pair, what in pairs.items() if "the pinned pair" in what)
    step = results.get(pinned, {}).get(smollm2, {}).get("step")
    lines = [
        HEAD,
        _row("torch", "transformers", "huggingface_hub", "", *parts, "SmolLM2's tokens", "step"),
        _row(*["---"] * (len(parts) + 6)),
    ]
    for pair, what in pairs.items():
        found = results.get(pair, {})
        hub = found.get("versions", {}).get("huggingface_hub", "")
        counts = [_counts(found.get(part)) for part in parts]
        lines.append(_row(*pair, hub, "; ".join(what), *counts, *_real(found.get(smollm2), step)))
    lines += ["", *_failures(results, parts), *_optimisations(results, smollm2), OTHERS]
    path.write_text("\n".join(lines))


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _counts(found: dict[str, Any] | None) -> str:
    """Of a part's tests."""
    if found is None:
        return "not run"
    told = [f"{found['passed']} passed"]
    if found["failed"]:
        told.append(f"**{found['failed']} failed**")
    if found["skipped"]:
        told.append(f"{found['skipped']} skipped")
    return ", ".join(told)


def _real(found: dict[str, Any] | None, pinned_step: float | None) -> tuple[str, str]:
    """Tokens that are alike, and a step's time beside the pinned pair's."""
    if found is None:
        return "not run", ""
    if "step" not in found:
        return "**failed**", ""
    alike, of = found["tokens_alike"], found["of"]
    tokens = f"{alike} of {of} alike" if alike == of else f"**only the first {alike} of {of} alike**"
    beside = f" ({found['step'] / pinned_step:.2f}x)" if pinned_step else ""
    return tokens, f"{found['step']:.1f} ms{beside}"


def _failures(results: dict[Pair, Any], parts: list[str]) -> Iterator[str]:
    """Which tests failed, pair by pair."""
    failed = {
        pair: [f for part in parts for f in found.get(part, {}).get("failures", ())]
        for pair, found in results.items()
    }
    if not any(failed.values()):
        return
    yield "## What failed\n"
    for pair, names in failed.items():
        if names:
            yield f"torch {pair[0]}, transformers {pair[1]}:\n"
            yield from (f"- `{name}`" for name in names)
            yield ""


def _optimisations(results: dict[Pair, Any], smollm2: str) -> Iterator[str]:
    """Which optimisations were used for SmolLM2, and why others weren't."""
    used = {pair: found.get(smollm2, {}).get("optimisations", {}) for pair, found in results.items()}
    used = {pair: told for pair, told in used.items() if told}
    if not used:
        return
    yield "## Optimisations\n"
    yield "The switches of `qfpass.Switches` and whether they were used for SmolLM2, by `qfpass.report`.\n"
    yield _row("switch", *(f"torch {torch}, transformers {transformers}" for torch, transformers in used))
    yield _row(*["---"] * (len(used) + 1))
    for name in next(iter(used.values())):
        yield _row(f"`{name}`", *(told.get(name, "").replace("|", "/") for told in used.values()))
    yield ""
