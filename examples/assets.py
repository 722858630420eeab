"""Where the examples' weights and texts are kept: a cache folder, filled by `fetch_weights.py`."""

from pathlib import Path

from qfpass.filters import cache_folder


def weights_folder() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder."""
    return cache_folder() / "assets" / "smollm2-135m-instruct"


def qwen_folder() -> Path:
    """Qwen2.5-Coder-0.5B-Instruct as a Hugging Face folder; `fetch_weights.py --qwen` makes it."""
    return cache_folder() / "assets" / "qwen2.5-coder-0.5b-instruct"


def filters_folder() -> Path:
    """Q-Filters of it, made by the benchmarks."""
    return cache_folder() / "assets" / "smollm2-filters"


def essays_folder() -> Path:
    """The essays that needle tests use, one text file each."""
    return cache_folder() / "assets" / "essays"


def essays_text() -> str:
    """All essays, joined in the order of their names."""
    return "\n\n".join(path.read_text() for path in sorted(essays_folder().glob("*.txt")))


if __name__ == "__main__":
    print(weights_folder(), filters_folder(), essays_folder())
