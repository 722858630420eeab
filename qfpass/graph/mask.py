"""A mask as something to ask: its subgraph cut out of the decoder, run on positions of our choice."""

from collections.abc import Sequence

import torch
from torch import fx

from ..errors import UnsupportedOpError
from .dependence import SHAPE_ONLY, attribute, cut_out, made_from, text_dependent, whole_numbers

BLOCKED_BELOW = -1e4  # additive masks use the dtype's lowest number or -inf; float16's is -65504


class Mask:
    """The masks of the attention named `site`, nodes of `module`'s graph, taken together.

    `factors` are nodes that multiply its logits before the masks.

    Attributes:
        numbers: the whole numbers that they are made with, a window's length among them if there is one.
        table_length: the longest text that a table stored in the model covers; None without a table.

    Raises:
        UnsupportedOpError: one depends on the text.
    """

    def __init__(
        self, module: fx.GraphModule, masks: Sequence[fx.Node], factors: Sequence[fx.Node], site: str
    ) -> None:
        self.site, self.device, self._masks = site, masks[0].meta["val"].device, len(masks)
        text = text_dependent(masks[0].graph, SHAPE_ONLY)
        if any(mask in text for mask in masks):
            raise UnsupportedOpError(
                f"{site}: its mask depends on the tokens themselves, not on their positions alone, so "
                "which keys it will show isn't known when one is evicted."
            )
        self._program = cut_out(module, [*masks, *factors])
        self.numbers = whole_numbers(self._program)
        held = [attribute(module, n) for n in self._program.graph.nodes if n.op == "get_attr"]
        tables = [t for t in held if isinstance(t, torch.Tensor) and bool(t.isfinite().any())]
        self.table_length = min((max(t.shape) for t in tables if t.dim() >= 2), default=None)

    @torch.no_grad()
    def evaluate(self, length: int, offset: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What it does to tokens at positions from `offset`: keys shown, and the bias that it adds.

        Returns:
            [length, length] bool, and [1 or Hq, 1 or length, length], or None where there is no bias.

        Raises:
            UnsupportedOpError: it hides other keys from other heads or can't be run.
        """
        ids = torch.zeros(1, length, dtype=torch.long, device=self.device)
        positions = torch.arange(offset, offset + length, device=self.device)[None]
        try:
            values = self._program(ids, positions)
        except (RuntimeError, IndexError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UnsupportedOpError(
                f"{self.site}: its mask can't be evaluated for {length} tokens from position {offset}: "
                f"{reason}"
            ) from error
        shown = torch.ones(length, length, dtype=torch.bool, device=self.device)
        bias: torch.Tensor | None = None
        for mask in values[: self._masks]:
            mask = mask.reshape(-1, *mask.shape[-2:])
            seen = mask if mask.dtype == torch.bool else mask > BLOCKED_BELOW
            if not bool((seen == seen[0]).all()):
                raise UnsupportedOpError(f"{self.site}: its mask shows other keys to other heads.")
            shown = shown & seen[0]
            if mask.dtype != torch.bool and bool(((mask != 0) & seen).any()):
                added = mask.masked_fill(~seen, 0.0).float()
                bias = added if bias is None else bias + added
        if any(_changes(factor, shown) for factor in values[self._masks :]):
            raise UnsupportedOpError(
                f"{self.site}: its logits are multiplied by numbers that depend on the position, other "
                "than 1 for keys that are seen."
            )
        return shown, bias


def constant(module: fx.GraphModule, node: fx.Node) -> torch.Tensor | None:
    """What a node of `module`'s graph holds whatever the inputs are; None if it is made from them."""
    if any(n.op == "placeholder" for n in made_from([node])):
        return None
    (value,) = cut_out(module, [node])(None, None)
    return value


def _changes(factor: torch.Tensor, shown: torch.Tensor) -> bool:
    """Whether it does more to the logits than to shrink those of keys that aren't shown."""
    factor = factor.expand(*factor.shape[:-2], *shown.shape)
    return bool(((factor != 1) & shown).any()) or not bool(((factor >= 0) & (factor <= 1)).all())
