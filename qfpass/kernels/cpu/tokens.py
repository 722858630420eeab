"""How many tokens the loops of products take."""

from typing import Any

MOST = 16  # with more, products are bound by arithmetic, which libraries do best


def number_of_tokens(kernel: Any, x: Any) -> dict[str, Any]:
    """Of x [T, K]: `tokens`, the C++ expression of T, and `most`, T itself if it is known, else `MOST`."""
    tokens = str(kernel.size(x, 0))
    known = tokens.removesuffix("L")
    return {"tokens": tokens, "most": int(known) if known.isdigit() else MOST}
