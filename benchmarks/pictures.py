"""The pictures on top of README.md, docs/performance.md and docs/quality.md, drawn from the records.

`python benchmarks/pictures.py` writes docs/_static/performance.svg and docs/_static/quality.svg.
"""

from typing import Any

from matplotlib import rcParams
from matplotlib.figure import Figure
from records import BOUNDED, DEFAULT, DOCS, EAGER, RECENCY, TUNED, evaluated, figure, held, over_full

FULL, OURS, OTHER = "#8a8f98", "#2a7de1", "#d9822b"  # grey, blue, orange: told apart without colours too
rcParams.update({"svg.hashsalt": "qfpass", "svg.fonttype": "none", "font.size": 10})


def bars(
    panel: Any, title: str, names: list[str], values: list[float], colours: list[str], form: str
) -> None:
    """One panel of bars with their numbers above."""
    drawn = panel.bar(names, values, color=colours, width=0.62)
    panel.bar_label(drawn, [form.format(value) for value in values], padding=2)
    panel.set_title(title, fontsize=10)
    panel.set_yticks([])
    panel.margins(y=0.15)
    for side in ("left", "right", "top"):
        panel.spines[side].set_visible(False)


def performance() -> Figure:
    """Milliseconds and bytes, beside the full cache."""
    drawn = Figure(figsize=(9, 2.9), layout="constrained")
    step, prompt, cache = drawn.subplots(1, 3)
    times = [
        figure("decode-float32", contender, n) or 0 for n in (2048, 8192) for contender in (EAGER, BOUNDED)
    ]
    names = ["full\n2,048", "qfpass\n2,048", "full\n8,192", "qfpass\n8,192"]
    bars(step, "ms a token, by tokens seen", names, times, [FULL, OURS] * 2, "{:.0f}")
    speeds = [figure("prefill-float32", contender, 8192, "prefill") or 0 for contender in (EAGER, BOUNDED)]
    bars(prompt, "reading 8,192 tokens, tokens/s", ["full", "qfpass"], speeds, [FULL, OURS], "{:.0f}")
    sizes = [held("far/needle", row) for row in ("uncompressed", "trained 8x int8", "trained 32x int8")]
    bars(
        cache,
        "keys and values of 8,192 tokens, MiB",
        ["full", "8x", "32x"],
        sizes,
        [FULL, OURS, OURS],
        "{:.0f}",
    )
    return drawn


def quality() -> Figure:
    """What is lost at 8x."""
    drawn = Figure(figsize=(9, 2.9), layout="constrained")
    facts, ruler, text = drawn.subplots(1, 3)
    rows = ("uncompressed", "trained 8x int8", "trained 32x int8")
    found = [100 * evaluated("needle/needle", row, "exact")[0] for row in rows]
    bars(facts, "facts found, of 100", ["full", "8x", "32x"], found, [FULL, OURS, OURS], "{:.0f}")
    rows = ("uncompressed", "trained 8x int8", "keydiff 8x", "recency 8x")
    means = [evaluated("ruler-8x/ruler", row, "average")[0] for row in rows]
    names = ["full", "trained", "KeyDiff", "recency"]
    bars(ruler, "RULER at 8x, mean of eleven tasks", names, means, [FULL, OURS, OTHER, OTHER], "{:.2f}")
    more = [float(over_full("smollm2", row).rstrip("%")) for row in (TUNED, DEFAULT, RECENCY)]
    names = ["tuned", "default", "recency"]
    bars(text, "perplexity above full at 8x, %", names, more, [OURS, OURS, OTHER], "{:.1f}")
    return drawn


def main() -> None:
    """Write both."""
    for name, draw in (("performance", performance), ("quality", quality)):
        drawn = draw()
        drawn.savefig(DOCS / "_static" / f"{name}.svg", metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
