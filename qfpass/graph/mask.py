"""A mask as something to ask: its subgraph cut out of the decoder, run on positions of our choice."""

import torch
from torch import fx

from ..errors import UnsupportedOpError
from .dependence import SHAPE_ONLY, text_dependent

BLOCKED_BELOW = -1e4  # additive masks use the dtype's lowest number or -inf; float16's is -65504


class Mask:
    """The mask of the attention named `site`, a node of `module`'s graph.

    Attributes:
        numbers: the whole numbers that it is made with, a window's length among them if it has one.
        table_length: the longest text that a table stored in the model covers; None without a table.

    Raises:
        UnsupportedOpError: it depends on the text.
    """

    def __init__(self, module: fx.GraphModule, mask: fx.Node, site: str) -> None:
        self.site, self.device = site, mask.meta["val"].device
        needed = _backward(mask)
        if mask in text_dependent(mask.graph, SHAPE_ONLY):
            raise UnsupportedOpError(
                f"{site}: its mask depends on the tokens themselves, not on their positions alone, so "
                "which keys it will show isn't known when one is evicted."
            )
        graph, self.numbers = _copied(mask, needed)
        self._program = fx.GraphModule(module, graph)
        held = [attribute(module, n) for n in needed if n.op == "get_attr"]
        tables = [t for t in held if isinstance(t, torch.Tensor) and bool(t.isfinite().any())]
        self.numbers |= {abs(int(x)) for t in tables if t.dim() < 2 for x in t.flatten()[:64].tolist()}
        self.table_length = min((max(t.shape) for t in tables if t.dim() >= 2), default=None)

    @torch.no_grad()
    def allowed(self, length: int, offset: int) -> torch.Tensor:
        """Which keys it shows to tokens at positions from `offset`, [length, length] bool.

        Raises:
            UnsupportedOpError: it adds a bias, treats heads differently or can't be run.
        """
        ids = torch.zeros(1, length, dtype=torch.long, device=self.device)
        positions = torch.arange(offset, offset + length, device=self.device)[None]
        try:
            mask = self._program(ids, positions)
        except (RuntimeError, IndexError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UnsupportedOpError(
                f"{self.site}: its mask can't be evaluated for {length} tokens from position {offset}: "
                f"{reason}"
            ) from error
        shown = self._shown(mask).reshape(-1, *mask.shape[-2:])
        if not bool((shown == shown[0]).all()):
            raise UnsupportedOpError(f"{self.site}: its mask shows other keys to other heads.")
        return shown[0].expand(length, length)

    def _shown(self, mask: torch.Tensor) -> torch.Tensor:
        if mask.dtype == torch.bool:
            return mask
        shown, blocked = mask == 0, mask <= BLOCKED_BELOW
        if not bool((shown | blocked).all()):
            raise UnsupportedOpError(
                f"{self.site}: its mask adds a bias to the attention (values other than 0 and -inf), "
                "which the pass can't recompute from stored positions."
            )
        return shown


def _backward(target: fx.Node) -> set[fx.Node]:
    """All that `target` is made from, and itself."""
    needed, pending = set[fx.Node](), [target]
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending.extend(node.all_input_nodes)
    return needed


def _copied(target: fx.Node, needed: set[fx.Node]) -> tuple[fx.Graph, set[int]]:
    """What makes `target`, as (input_ids, position_ids) -> target, and the whole numbers in it."""
    graph, numbers = fx.Graph(), set[int]()
    copies: dict[fx.Node, fx.Node] = {}
    for node in target.graph.nodes:
        if node.op == "placeholder" or node in needed:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
            numbers |= _integers((node.args, tuple(node.kwargs.values())))
    graph.output(copies[target])
    return graph, numbers


def _integers(args: object) -> set[int]:
    if isinstance(args, (tuple, list)):
        return set().union(*(_integers(a) for a in args)) if args else set()
    if isinstance(args, (int, float)) and not isinstance(args, bool) and args == args:
        return {abs(int(args))} if abs(args) < 2**31 else set()
    return set()


def attribute(module: fx.GraphModule, node: fx.Node) -> object:
    """What a get_attr node reads from the module."""
    value: object = module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value
