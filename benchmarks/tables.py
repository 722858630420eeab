"""The tables of README.md and of pages of the site, made from the records beside the pages.

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

PAGES = (ROOT / "README.md", DOCS / "performance.md", DOCS / "quality.md", DOCS / "quantised_weights.md")
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
    """README: what 8x and 32x give and cost, on two models; a dash for what wasn't measured."""
    own = (*TUNED_ROWS, "trained 32x int8-int4")
    mib, mib_qwen = (
        [shown(held(f"without_data/{model}/needle", row)) for row in rows]
        for model, rows in (("smollm2", own), ("qwen", TUNED_ROWS))
    )
    step = [figure("decode-float32", each, 8192) for each in (EAGER, BOUNDED)]
    prompt = [figure("prefill-float32", each, 8192, "prefill") for each in (EAGER, BOUNDED)]
    facts = [found_whole("needle/needle", row) for row in NEEDLE_ROWS]
    tuned = [found_whole("without_data/smollm2/needle", row) for row in own]
    tuned_qwen = [found_whole("without_data/qwen/needle", row) for row in TUNED_ROWS]
    ruler = [evaluated("ruler-8x/ruler", row, "average")[0] for row in ("uncompressed", "trained 8x int8")]
    rows: list[tuple[str, list[str], list[str]]] = [
        ("cache of 2,048 tokens, MiB", mib, mib_qwen),
        ("one more token, ms", [shown(each, "{:.0f}") for each in step], []),
        ("prompt, tokens/s", [shown(each, "{:.0f}") for each in prompt], []),
        ("facts found, tuned, %", tuned, tuned_qwen),
        ("facts found, trained, %", facts, []),
        ("RULER, trained", [shown(each, "{:.2f}") for each in ruler], []),
        *(
            (f"perplexity, {when}", ["+0%", over_full("smollm2", row)], ["+0%", over_full("qwen", row)])
            for when, row in (("tuned", TUNED), ("as it comes", DEFAULT))
        ),
    ]
    heads = ("", "SmolLM2-135M, full", "8x", "32x", "Qwen2.5-Coder-0.5B, full", "8x")
    return table(heads, [(name, *filled(one, 3), *filled(two, 2)) for name, one, two in rows])


def found_whole(name: str, row: str) -> str:
    """Of a hundred facts, how many a row of a record of needles found whole."""
    return f"{100 * evaluated(name, row, 'exact')[0]:.0f}"


def filled(cells: list[str], columns: int) -> list[str]:
    """The cells, and dashes for the columns that they lack."""
    return [*cells, *["-"] * (columns - len(cells))]


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


def quantised() -> str:
    """A step of a bfloat16 model with torchao's weights, on a processor."""
    rows = [
        (row["weights"], shown(row["step_ms"]), shown(row["of_bfloat16"], "{:.2f}"))
        for row in record("performance/quantised-bfloat16")["rows"]
    ]
    return table(("weights", "ms a step", "of bfloat16's"), rows)


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
    "quantised": quantised, "ruler": ruler, "perplexity": perplexity, "bits": bits,
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
