"""Span: what a mask means, learned by evaluating the mask's own subgraph on positions."""

from dataclasses import dataclass

import torch
from torch import fx

from ..errors import UnsupportedOpError

SHORT_PROBE = 24  # tokens
LONGEST_PROBE = 16384  # tokens; a probe costs this squared in bytes
BLOCKED_BELOW = -1e4  # additive masks use the dtype's lowest number or -inf; float16's is -65504


@dataclass(frozen=True)
class Span:
    """How far back a query sees: causal, within `window` tokens (itself included) if one is given."""

    window: int | None = None

    def allows(self, length: int, device: torch.device) -> torch.Tensor:
        """The boolean mask [length, length] that this span means: True where a key is seen."""
        place = torch.arange(length, device=device)
        distance = place[:, None] - place[None, :]
        seen = distance >= 0
        return seen if self.window is None else seen & (distance < self.window)

    def __str__(self) -> str:
        return "causal" if self.window is None else f"causal, window {self.window}"


def learn_span(module: fx.GraphModule, mask: fx.Node, site: str, context_length: int | None) -> Span:
    """The span of `mask`, a node of `module`'s graph, as used by the attention named `site`.

    The mask is evaluated at two lengths (the longer reaches past every window that its constants could
    mean), at two offsets and for two texts, and compared with causal and causal-within-w.

    Raises:
        UnsupportedOpError: it is neither, has a bias, depends on the text, or is too long to evaluate.
    """
    graph, constants = _backward_slice(mask)
    probe = fx.GraphModule(module, graph)
    reach = [c for c in constants if 1 < c < (context_length or LONGEST_PROBE)]
    if any(c > LONGEST_PROBE for c in reach):
        raise UnsupportedOpError(
            f"{site}: its mask may hold a window of {max(reach)} tokens, longer than the "
            f"{LONGEST_PROBE} that can be evaluated: pass a smaller context_length."
        )
    device = _device(mask)
    span = Span()
    for length in (max([SHORT_PROBE, *(c + 2 for c in reach)]), SHORT_PROBE):
        for token, offset in ((0, 0), (1, 0), (0, 7)):
            allowed = _allowed(probe, length, token, offset, device, site)
            if token == 0 and offset == 0:
                span = _read_last_row(allowed, span)
            if not bool((allowed == span.allows(length, device)).all()):
                raise UnsupportedOpError(
                    f"{site}: its mask is neither causal nor causal within a fixed window "
                    f"(compared at {length} tokens), so its keys can't be bounded safely."
                )
    return span


def _read_last_row(allowed: torch.Tensor, known: Span) -> Span:
    """The only span that the last query's keys allow; a window longer than the probe stays as known."""
    length = allowed.shape[-1]
    seen = int(allowed.reshape(-1, length, length)[0, -1].sum())
    if 0 < seen < length:
        return Span(window=seen)
    return known


def _allowed(
    probe: fx.GraphModule, length: int, token: int, offset: int, device: torch.device, site: str
) -> torch.Tensor:
    """Which keys the mask shows, [..., length, length] bool."""
    ids = torch.full((1, length), token, dtype=torch.long, device=device)
    positions = torch.arange(offset, offset + length, device=device)[None]
    with torch.no_grad():
        mask = probe(ids, positions)
    if mask.dtype == torch.bool:
        return mask
    allowed, blocked = mask == 0, mask <= BLOCKED_BELOW
    if not bool((allowed | blocked).all()):
        raise UnsupportedOpError(
            f"{site}: its mask adds a bias to the attention (values other than 0 and -inf), "
            "which the pass can't recompute from stored positions."
        )
    return allowed


def _backward_slice(target: fx.Node) -> tuple[fx.Graph, set[int]]:
    """What makes `target`, as (input_ids, position_ids) -> target, and the whole numbers in it."""
    needed: set[fx.Node] = set()
    pending = [target]
    while pending:
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending.extend(node.all_input_nodes)
    graph, constants = fx.Graph(), set[int]()
    copies: dict[fx.Node, fx.Node] = {}
    for node in target.graph.nodes:
        if node.op == "placeholder" or node in needed:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
            constants |= _integers((node.args, tuple(node.kwargs.values())))
    graph.output(copies[target])
    return graph, constants


def _integers(args: object) -> set[int]:
    if isinstance(args, (tuple, list)):
        return set().union(*(_integers(a) for a in args)) if args else set()
    if isinstance(args, (int, float)) and not isinstance(args, bool) and args == args:
        return {abs(int(args))} if abs(args) < 2**31 else set()
    return set()


def _device(mask: fx.Node) -> torch.device:
    return mask.meta["val"].device
