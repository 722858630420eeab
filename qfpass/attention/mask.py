"""The masks of an attention as a program: their part of the decoder's graph, run on positions of any text."""

from collections.abc import Sequence

import torch
from torch import fx

from ..errors import UnsupportedOpError
from ..graph.dependence import SHAPE_ONLY, text_dependent
from ..graph.devices import device_of
from ..graph.nodes import attribute
from ..graph.subgraph import ancestors, cut_out, integers_in

# Additive masks hide keys by -inf, the dtype's lowest number (float16's is -65504), or one like -1e9 or -1e4.
HIDDEN_BELOW, SURELY_HIDDEN_BELOW = -1e4, -1e8
APART = 1.5  # times the lowest number that is shown: the numbers of a bias by distance lie closer together


class MaskProgram:
    """All masks of one attention, cut out of the graph, to be evaluated together.

    `masks` and `factors` are nodes of `module`'s graph; `factors` multiply the logits before the masks apply.

    Attributes:
        site: the attention's name.
        device: the device of what `evaluate` gives.
        numbers: the whole numbers in the masks' program; the length of a window is one of them.
        table_length: tokens that the shortest table stored in the model covers; None without a table.

    Raises:
        UnsupportedOpError: a mask depends on the token ids.
    """

    def __init__(
        self, module: fx.GraphModule, masks: Sequence[fx.Node], factors: Sequence[fx.Node], site: str
    ) -> None:
        ids = next(node for node in masks[0].graph.nodes if node.op == "placeholder").meta["val"]
        self.site, self.device, self._masks = site, device_of(ids), len(masks)
        text = text_dependent(masks[0].graph, SHAPE_ONLY)
        if any(mask in text for mask in masks):
            raise UnsupportedOpError(
                f"{site}: its mask depends on the tokens themselves, not only on their positions, so "
                "nobody knows at eviction which keys later tokens will see."
            )
        self._program = cut_out(module, [*masks, *factors])
        self.numbers = integers_in(self._program)
        held = [attribute(module, n) for n in self._program.graph.nodes if n.op == "get_attr"]
        tables = [t for t in held if isinstance(t, torch.Tensor) and bool(t.isfinite().any())]
        self.table_length = min((max(t.shape) for t in tables if t.dim() >= 2), default=None)

    @torch.no_grad()
    def evaluate(self, length: int, offset: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The keys that the masks show to `length` tokens at positions from `offset`, and the bias they add.

        Returns:
            [length, length] bool; and [1 or Hq, 1 or length, length] float32, or None if there is no bias.

        Raises:
            UnsupportedOpError: the masks can't be run or show different keys to different heads, or a factor
                changes the logit of a key that is shown.
        """
        ids = torch.zeros(1, length, dtype=torch.long, device=self.device)
        positions = torch.arange(offset, offset + length, device=self.device)[None]
        try:
            values = [value.to(self.device) for value in self._program(ids, positions)]
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
            seen = mask if mask.dtype == torch.bool else _seen(mask)
            if not bool((seen == seen[0]).all()):
                raise UnsupportedOpError(f"{self.site}: its mask hides different keys from different heads.")
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


def _seen(mask: torch.Tensor) -> torch.Tensor:
    """Where an additive mask shows a key: above -1e4, unless a long text's bias goes on below that."""
    least = torch.finfo(mask.dtype).min if mask.is_floating_point() else float("-inf")
    mask = mask.float()
    seen = mask > HIDDEN_BELOW
    lowest_seen = mask.masked_fill(~seen, 0.0).amin()
    highest_hidden = mask.masked_fill(seen, float("-inf")).amax()
    if bool(highest_hidden < APART * lowest_seen):
        return seen
    return mask > max(SURELY_HIDDEN_BELOW, least / 2)


def constant_value(module: fx.GraphModule, node: fx.Node) -> torch.Tensor | None:
    """The value of a node of `module`'s graph that depends on no input; None if it depends on one."""
    if any(n.op == "placeholder" for n in ancestors([node])):
        return None
    (value,) = cut_out(module, [node])(None, None)
    return value


def _changes(factor: torch.Tensor, shown: torch.Tensor) -> bool:
    """Whether a factor isn't 1 for a key that is shown, or outside [0, 1] for any key."""
    factor = factor.expand(*factor.shape[:-2], *shown.shape)
    return bool(((factor != 1) & shown).any()) or not bool(((factor >= 0) & (factor <= 1)).all())
