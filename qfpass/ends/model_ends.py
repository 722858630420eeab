"""Make a decoder's graphs with other ends when they are first asked for, and prove them."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import fx, nn

from ..attention.find import Attention
from ..capture.quantised_linears import as_compiled
from ..errors import InputError
from ..graph.captured import Captured
from ..graph.tracing import TRACING
from ..kernels.kernel import Kernel
from ..proof.text import positions_of, random_text
from ..proof.verify import PROOF_TOKENS
from ..sessions.tokens import Ends, Tokens
from ..waits import Wait
from .cut import Cuts, with_ends
from .original import embeddings_of, hidden_states_of, require_embeddings
from .prove import prove_ends
from .values import nodes_that_hold

G = TypeVar("G")
AXES = 3  # of positions: time, height and width
SAYS = "proving graphs of {model} that take {taken} and give {given}"


class ModelEnds(Generic[G]):
    """Makes graphs of one model that work on the same stores and take or give something else.

    Args:
        rewritten: the decoder on stores.
        make: lowers such a graph.
        say: whether to tell of the wait.
    """

    def __init__(
        self,
        model: nn.Module,
        captured: Captured,
        attentions: list[Attention],
        rewritten: fx.GraphModule,
        make: Callable[[fx.GraphModule], G],
        kernel: Kernel | None,
        say: bool,
    ) -> None:
        self._model, self._captured, self._attentions = model, captured, attentions
        self._rewritten, self._make, self._kernel, self._say = rewritten, make, kernel, say
        self._embedding: torch.Tensor | None = None  # of some ids
        self._states: list[torch.Tensor] | None = None  # empty, of the dtype and size of each hidden state

    def graphs(self, ends: Ends) -> G:
        """The graphs with these ends, proven.

        Raises:
            InputError: the model takes or gives no such thing, or its graph doesn't hold it.
            VerificationError: the graph gives something else than the original.
        """
        what = _words(type(self._model).__name__, ends)
        with TRACING, as_compiled(self._model), torch.no_grad(), Wait(what, "once", shown=self._say):
            ids = random_text(self._captured, PROOF_TOKENS)
            cuts = self._find(ends, ids)
            prove_ends(
                self._model, self._captured, self._attentions, cuts, self._text(ends, ids), self._kernel
            )
            return self._make(with_ends(self._rewritten, cuts))

    def hidden_numbers(self, asked: bool | int | Sequence[int]) -> tuple[int, ...]:
        """The numbers of the hidden states that are asked for: all for True, else those counted from an end.

        Raises:
            InputError: the original gives none, or fewer.
        """
        states = len(self._empty_states())
        if asked is True:
            return tuple(range(states))
        numbers = tuple(asked) if isinstance(asked, (tuple, list, range)) else (asked,)
        if not numbers or not all(type(n) is int and -states <= n < states for n in numbers):
            raise InputError(
                f"output_hidden_states must be True or numbers of the {states} hidden states, not {asked!r}."
            )
        return tuple(n % states for n in numbers)

    def split(self, values: torch.Tensor, hidden: Sequence[int]) -> list[torch.Tensor]:
        """Of what graphs gave, [B, T, n * E + V]: these hidden states, then any output of the model's."""
        if not hidden:
            return [values]
        known = self._empty_states()
        states, start = [], 0
        for like in (known[number] for number in hidden):
            # A copy, which doesn't keep the logits beside it in memory.
            states.append(values[..., start : start + like.shape[-1]].to(like.dtype).contiguous())
            start += like.shape[-1]
        return [*states, *([values[..., start:]] if start < values.shape[-1] else [])]

    def _empty_states(self) -> list[torch.Tensor]:
        if self._states is None:
            with as_compiled(self._model):
                ids = random_text(self._captured, 2)
                states = hidden_states_of(self._model, Tokens(ids), positions_of(ids))
            self._states = [state[:, :0] for state in states]
        return self._states

    def require_width(self, embeddings: torch.Tensor) -> None:
        """Raise InputError unless embeddings [B, S, E] have the size and dtype of the model's own."""
        if self._embedding is None:
            require_embeddings(self._model)
            self._embedding = embeddings_of(self._model, random_text(self._captured, 2))
        own = self._embedding
        if embeddings.shape[-1] != own.shape[-1] or embeddings.dtype != own.dtype:
            raise InputError(
                f"inputs_embeds have {embeddings.shape[-1]} numbers per token in {embeddings.dtype}, but the "
                f"model's embeddings have {own.shape[-1]} in {own.dtype}."
            )

    def _find(self, ends: Ends, ids: torch.Tensor) -> Cuts:
        """The nodes that become inputs and outputs."""
        positions = positions_of(ids)
        wanted = dict[str, torch.Tensor]()
        if ends.embeddings:
            require_embeddings(self._model)
            wanted["embeddings of its ids"] = embeddings_of(self._model, ids)
        if ends.axes:
            wanted["positions of several axes"] = positions.expand(AXES, -1, -1)
        if ends.hidden:
            states = hidden_states_of(self._model, Tokens(ids), positions)
            wanted |= {f"hidden_states[{number}]": states[number] for number in ends.hidden}
        nodes = nodes_that_hold(self._captured, ids, positions, list(wanted.values()))
        lost = [name for name, node in zip(wanted, nodes, strict=True) if node is None]
        if lost:
            raise InputError(f"the graph of {type(self._model).__name__} doesn't hold its {', '.join(lost)}.")
        names = iter([node.name for node in nodes if node is not None])
        embeddings = next(names) if ends.embeddings else None
        axes = next(names) if ends.axes else None
        return Cuts(embeddings, axes, tuple(names), ends.logits)

    def _text(self, ends: Ends, ids: torch.Tensor) -> Tokens:
        """A text for the proof; its embeddings are no id's, and its axes go their own ways."""
        generator = torch.Generator().manual_seed(0)
        embeddings = axes = None
        if ends.embeddings:
            known = embeddings_of(self._model, ids)
            noise = torch.randn(known.shape, generator=generator).to(known.device, known.dtype)
            embeddings = known + noise * known.std() / 2
        if ends.axes:
            steps = torch.randint(0, 3, (*ids.shape, AXES), generator=generator)
            axes = steps.cumsum(1).to(ids.device)
        return Tokens(ids, embeddings, axes, ends.hidden, ends.logits)


def _words(model: str, ends: Ends) -> str:
    taken = "embeddings" if ends.embeddings else "ids"
    given = "hidden states" if ends.hidden else "logits"
    return SAYS.format(model=model, taken=taken, given=given)
