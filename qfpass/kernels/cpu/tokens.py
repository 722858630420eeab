"""How many tokens the loops of products take."""

from typing import Any

MOST = 16  # with more, products are bound by arithmetic, which libraries do best


def number_of_tokens(kernel: Any, x: Any) -> dict[str, Any]:
    """Of x [T, K]: `tokens`, the C++ expression of T, and `most`, T itself if it is known, else `MOST`."""
    tokens = x.get_size()[0]
    most = int(tokens) if getattr(tokens, "is_number", True) else MOST
    return {"tokens": str(kernel.size(x, 0)), "most": most}
