"""The tables of README.md, docs/performance.md and docs/quality.md, made from the records beside the pages.

`python benchmarks/tables.py` writes them anew. A table stands between `<!-- table: NAME -->` and
`<!-- end of table -->`; what is between is replaced.
`tests/test_pages.py` fails where a page has another one.
"""

import re
from collections.abc import Callable, Iterable, Sequence

from records import (
    BOUNDED,
    DEFAULT,
    DOCS,
    EAGER,
    RECENCY,
    ROOT,
    STATIC,
    TUNED,
    evaluated,
    figure,
    held,
    over_full,
    record,
)  # fmt: skip

PAGES = (ROOT / "README.md", DOCS / "performance.md", DOCS / "quality.md")
MARKED = re.compile(r"(<!-- table: ([a-z0-9 ]+) -->\n).*?(\n<!-- end of table -->)", re.DOTALL)

Rows = Iterable[Sequence[object]]


def table(head: Sequence[str], rows: Rows) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def shown(value: float | None, form: str = "{:.1f}") -> str:
    """A number as it stands in a table; nothing for none."""
    return "" if value is None else form.format(value)


def glance() -> str:
    """README: what 8x and 32x give and cost."""
    found = {r: 100 * evaluated("needle/needle", r, "exact")[0] for r in NEEDLE_ROWS}
    ruler = [evaluated("ruler-8x/ruler", r, "average")[0] for r in ("uncompressed", "trained 8x int8")]
    mib = [held("far/needle", r) for r in NEEDLE_ROWS]
    prompt = [figure("prefill-float32", c, 8192, "prefill") for c in (EAGER, BOUNDED)]
    step = [figure("decode-float32", c, 8192) for c in (EAGER, BOUNDED)]
    rows = [
        ("keys and values of 8,192 tokens, MiB", *(shown(m, "{:.0f}") for m in mib), "`quality.py far`"),
        ("one more token after 8,192, ms", *(shown(s, "{:.0f}") for s in step), "", "`make bench`"),
        ("reading 8,192 tokens, tokens/s", *(shown(p, "{:.0f}") for p in prompt), "", "`make bench`"),
        ("facts found, of 100", *(shown(f, "{:.0f}") for f in found.values()), "`quality.py needle`"),
        (
            "percent of facts found after `qfpass tune`",
            *(
                shown(100 * evaluated("without_data/smollm2/needle", r, "exact")[0], "{:.0f}")
                for r in (*TUNED_ROWS, "trained 32x int8-int4")
            ),
            "`without_data.py`",
        ),
        (
            "the same, Qwen2.5-Coder-0.5B",
            *(
                shown(100 * evaluated("without_data/qwen/needle", r, "exact")[0], "{:.0f}")
                for r in TUNED_ROWS
            ),
            "",
            "`without_data.py`",
        ),
        ("RULER, mean of eleven tasks", *(shown(r, "{:.2f}") for r in ruler), "", "`quality.py ruler-8x`"),
        ("perplexity after `qfpass tune`", "", over_full("smollm2", TUNED), "", "`same_bytes.py`"),
        ("the same, Qwen2.5-Coder-0.5B", "", over_full("qwen", TUNED), "", "`same_bytes.py`"),
        ("perplexity as it comes", "", over_full("smollm2", DEFAULT), "", "`same_bytes.py`"),
        ("the same, Qwen2.5-Coder-0.5B", "", over_full("qwen", DEFAULT), "", "`same_bytes.py`"),
    ]
    return table(("SmolLM2-135M, two cores", "full cache", "8x", "32x", "measured by"), rows)


TUNED_ROWS = ("uncompressed", "trained 8x int8-int4")
NEEDLE_ROWS = ("uncompressed", "trained 8x int8", "trained 32x int8")


def steps() -> str:
    """A step on a processor, by dtype and tokens seen."""
    names = {
        EAGER: "transformers, DynamicCache, eager", STATIC: "transformers, StaticCache, torch.compile",
        "qfpass, ratio 1": "qfpass, every key kept", BOUNDED: "**qfpass, 1,024 slots**",
    }  # fmt: skip
    places = [(f"decode-{dtype}", tokens) for dtype in ("float32", "bfloat16") for tokens in (2048, 8192)]
    rows = [(name, *(shown(figure(file, key, n)) for file, n in places)) for key, name in names.items()]
    return table(("ms a token", "float32, 2,048 seen", "8,192", "bfloat16, 2,048 seen", "8,192"), rows)


def prompts() -> str:
    """Prompts read whole, on a processor."""
    places = [(f"prefill-{dtype}", tokens) for dtype in ("float32", "bfloat16") for tokens in (2048, 8192)]
    rows = [
        (name, *(shown(figure(file, key, n, "prefill"), "{:.0f}") for file, n in places))
        for key, name in ((EAGER, "transformers, the same chunks"), (BOUNDED, "**qfpass, 1,024 slots**"))
    ]
    return table(("tokens/s", "float32, 2,048 tokens", "8,192", "bfloat16, 2,048 tokens", "8,192"), rows)


def batches() -> str:
    """Steps of several rows, on a processor."""
    places = [(f"batches/decode-{dtype}", b) for dtype in ("float32", "bfloat16") for b in (1, 4, 16)]
    rows = [
        (name, *(shown(figure(file, key, 2048, batch=b)) for file, b in places))
        for key, name in ((EAGER, "transformers, DynamicCache, eager"), (BOUNDED, "**qfpass, 1,024 slots**"))
    ]
    return table(("ms a token of all rows", "float32, 1 row", "4", "16", "bfloat16, 1 row", "4", "16"), rows)


def memory() -> str:
    """The peak while 65,536 tokens are read."""
    parts = ("above the weights", "of which cache")
    rows = [
        (name, *(shown(figure("memory-float32", f"{key}, {p}", 65536, "memory"), "{:,.0f}") for p in parts))
        for key, name in ((EAGER, "transformers, DynamicCache, eager"), ("qfpass", "**qfpass, 32x**"))
    ]
    return table(("MiB at the most, float32", "above the weights", "of which cache"), rows)


def compiling() -> str:
    """Seconds from `qfpass.compile` on, in a new process."""
    stages = ("compile", "first token", "first step")
    rows = [
        (name, *(shown(figure("compile-float32", f"{key}, default, all layers: to {stage}", 600, "compile"))
                 for stage in stages))
        for key, name in (("cold", "the first time"), ("warm", "from then on"))
    ]  # fmt: skip
    return table(("seconds to", "`compile` returns", "the first token", "the first step"), rows)


def gpu() -> str:
    """A step on an H200."""
    places = [(2048, 1), (8192, 1), (32768, 1), (8192, 16)]
    rows = [
        (name, *(shown(figure("cuda/decode-bfloat16", key, n, batch=b)) for n, b in places))
        for key, name in (
            (EAGER, "transformers, DynamicCache, eager"),
            (STATIC, "transformers, StaticCache, torch.compile"),
            (BOUNDED, "**qfpass, 1,024 slots**"),
        )
    ]  # fmt: skip
    return table(("ms a token, bfloat16", "2,048 seen", "8,192", "32,768", "16 rows, 8,192"), rows)


def others() -> str:
    """A step after 8,192 tokens with other programs."""
    pressed = "kvpress, QFilterPress in DecodingPress"
    names = {
        "kvpress, QFilterPress alone": "kvpress, QFilterPress on the prompt alone, 1,024 kept",
        f"{pressed}, every step": "kvpress, QFilterPress at every step",
        f"{pressed}, every 64 steps": "kvpress, at every 64th step",
    }
    rows = [(name, shown(figure("kvpress", key, 8192))) for key, name in names.items()]
    rows.append(("llama.cpp, weights in four bits, full cache", shown(figure("llama_cpp", LLAMA, 8192))))
    return table(("ms a token after 8,192, float32 unless said", ""), rows)


LLAMA = "llama.cpp, Q4_1 weights"


def equal_bytes() -> str:
    """Perplexity over the full cache's, at equal bytes."""
    names = {
        RECENCY: "recency (StreamingLLM) in bfloat16",
        DEFAULT: "**the default**: published score, few bits",
        TUNED: "**after `qfpass tune`**, the same bits",
    }
    rows = [(name, over_full("smollm2", key), over_full("qwen", key)) for key, name in names.items()]
    return table(("perplexity over the full cache's", "SmolLM2-135M", "Qwen2.5-Coder-0.5B"), rows)


def needles() -> str:
    """Facts found after the text was compressed."""
    names = dict(zip(NEEDLE_ROWS, ("full cache", "trained, int8, 8x", "trained, int8, 32x"), strict=True))
    rows = [
        (
            name,
            *(f"{100 * x:.0f}" for x in evaluated("needle/needle", key, "exact")),
            shown(held("needle/needle", key)),
        )
        for key, name in names.items()
    ]
    return table(("", "found whole, of 100", "± points", "MiB of keys and values"), rows)


PLAIN = {
    "uncompressed": "full cache", "trained {r} int8": "trained, int8", "trained {r}": "trained",
    "keydiff {r}": "KeyDiff", "recency {r}": "recency (StreamingLLM)", "published {r}": "published",
    "snapkv {r}": "SnapKV", "expected_attention {r}": "Expected Attention", "knorm {r}": "K-norm",
    "random {r}": "random",
}  # fmt: skip


def ruler() -> str:
    """RULER's tasks at 4x and 8x."""
    rows = []
    for key, name in PLAIN.items():
        cells = []
        for ratio in ("4x", "8x"):
            known = {e["name"] for e in record(f"quality/ruler-{ratio}/ruler")["rows"]}
            row = key.format(r=ratio)
            mean, error = evaluated(f"ruler-{ratio}/ruler", row, "average") if row in known else (None, None)
            cells.append("" if mean is None else f"{mean:.3f} ± {error:.3f}")
        rows.append((name, *cells))
    return table(("mean of eleven tasks, 2,048 tokens", "4x", "8x"), rows)


def perplexity() -> str:
    """Perplexity of streamed text."""
    files = ("perplexity-2048/perplexity", "perplexity-8192/perplexity")
    rows = []
    for key in ("uncompressed", "trained {r} int8", "trained {r}", "published {r}", "recency {r}"):
        cells, row = [], key.format(r="8x")
        for file in files:
            known = {e["name"] for e in record(f"quality/{file}")["rows"]}
            mean, error = evaluated(file, row, "perplexity") if row in known else (None, None)
            cells.append("" if mean is None else f"{mean:.2f} ± {error:.2f}")
        rows.append((PLAIN[key], *cells))
    return table(("perplexity at 8x", "texts of 2,048 tokens", "texts of 8,192 tokens"), rows)


def bits() -> str:
    """What few bits cost where every key is kept."""
    rows = []
    for kind, name in (("torch.int8", "eight bits"), ("int8-int4", "keys in eight bits, values in four")):
        found = {
            each["model"]: each for each in record("quality/bits")["rows"]
            if each["kind"] == kind and each["smoothed"] and each["text"] != "own"
        }  # fmt: skip
        rows.append((name, *(found[model]["perplexity"] for model in sorted(found, reverse=True))))
    return table(("perplexity over the model's own dtype's", "SmolLM2-135M", "Qwen2.5-Coder-0.5B"), rows)


MAKERS: dict[str, Callable[[], str]] = {
    "glance": glance, "steps": steps, "prompts": prompts, "batches": batches, "memory": memory,
    "compiling": compiling, "gpu": gpu, "others": others, "equal bytes": equal_bytes, "needles": needles,
    "ruler": ruler, "perplexity": perplexity, "bits": bits,
}  # fmt: skip


def with_tables(text: str) -> str:
    """A page's text with every table made anew."""
    return MARKED.sub(lambda found: f"{found[1]}\n{MAKERS[found[2]]()}\n{found[3]}", text)


def main() -> None:
    """Write the tables into the pages."""
    for page in PAGES:
        page.write_text(with_tables(page.read_text()))


if __name__ == "__main__":
    main()
