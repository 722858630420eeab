"""Decoder: the compiled graphs of a model, run on stores.

Any mix of prompts and steps of one batch size needs four graphs: one token (`step`), a chunk of any length
(`chunk`, which returns hidden states), the logits of chosen tokens (`head`), and what a step is about to
overwrite (`watch`). A step whose rows have filled different numbers of slots needs one more.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from ..config import Config
from ..filters import QFilters, TrainedFilters, filters_digest
from ..graph.part import Part
from ..graph.stages import Stages
from ..lowering.as_compiled import compile_time_settings
from ..lowering.decoder_graphs import DecoderGraphs
from ..lowering.lower import mark_length
from ..lowering.replays import Replays
from ..lowering.weight_guard import PackedWeights, read_by_steps
from ..rewriting.rotary import Rotation
from ..sessions.overwritten import Overwritten
from ..sessions.rows import Row, all_equal
from ..sessions.session import Session
from ..sessions.stores import Stores
from ..sessions.tokens import Ends, Tokens
from ..sizes import Sizes
from ..store.layer import Layer
from ..upstream import dynamo
from .budget import sizes_for
from .graph_inputs import GraphInputs
from .graphs_by_ends import GraphsByEnds, OtherEnds
from .in_turn import FairLock
from .overwritten_slots import OverwriteFinder, positions_of, slots_of_next
from .taken_back import require_kept


class Decoder:
    """A compiled decoder that works on a session's stores; it holds no state of any text.

    Attributes:
        replays: the recorded steps on full stores.
        watch: finds what a step will overwrite.
        by_ends: the graphs that take embeddings or give hidden states, beside `graphs`.
        inputs: makes the graphs' inputs after ids and positions.
        vocabulary: token ids are below this number; None if the graph doesn't show it.
        most_tokens: a store holds no more tokens than this.
        lies_on_several: whether layers lie on several devices.
        part: what this process has of the model, if it is split over several.
        whole_layers: the layers of the whole model; `layers` are this process's.
        rotations: for each attention the rotation that moves its stored keys; empty if keys are never moved.

    Args:
        skipped: the optimisations that the capture didn't use, by name, each with the reason.
        filters: of all layers and heads of the model.
        other_ends: makes graphs that take embeddings or give hidden states; None where there are none.
    """

    def __init__(
        self,
        graphs: DecoderGraphs,
        layers: Sequence[Layer],
        filters: QFilters | TrainedFilters | None,
        sizes: Sizes,
        config: Config,
        device: torch.device,
        dtype: torch.dtype,
        fingerprint: str,
        vocabulary: int | None,
        rotations: Sequence[Rotation | None],
        skipped: Mapping[str, str],
        other_ends: OtherEnds | None = None,
        part: Part | None = None,
        whole_layers: Sequence[Layer] | None = None,
    ) -> None:
        self._skipped = skipped
        self.fingerprint, self.vocabulary, self.rotations = fingerprint, vocabulary, tuple(rotations)
        self.layers, self.sizes, self.config = tuple(layers), sizes, config
        self.device, self.dtype, self.filters = device, dtype, filters
        self.lies_on_several = any(layer.device for layer in self.layers)
        self.graphs = graphs
        self.by_ends = GraphsByEnds(graphs, other_ends, isinstance(part, Stages), self.lies_on_several)
        self._lock = FairLock()
        self._default_dtype = torch.get_default_dtype()
        self._packed = PackedWeights(graphs.packed)
        options = config.compile_options.get("options") or {}
        # What another backend runs is called as it is, also what finds the slots that a step overwrites.
        wanted = config.switches.replay and config.backend == "inductor"
        replays = partial(Replays, device, options=options, wanted=wanted, on_several=self.lies_on_several)
        self.replays = replays(read_by_steps(graphs.weights, graphs.packed))
        self.watch = OverwriteFinder(config, replays(()), graphs.watch)
        self.whole_layers = tuple(whole_layers or layers)
        self._most_slots = max(layer.rule.slots for layer in self.whole_layers)
        self.most_tokens = max(sizes.context_length, self._most_slots)
        own_filters = filters.map_heads(part.own_heads) if filters and part else filters
        self.inputs = GraphInputs(layers, own_filters, self.most_tokens, device)
        self.part = part
        self._batch_sizes = set[int]()

    @contextmanager
    def running(self) -> Iterator[None]:
        """A context for running graphs: threads take turns, and torch's settings are those at compile."""
        with self._lock.held(), compile_time_settings(self.device, self._default_dtype):
            yield

    def session(self, budget: int | None = None, take_back: int = 0) -> Session:
        """A new, empty session that uses `budget` slots per head in bounded layers, by default all of them.

        `take_back`: how many of the newest tokens can be taken back.

        Raises:
            ConfigError, SessionError: these sizes aren't possible; see `sizes_for` and `require_kept`.
        """
        sizes, layers = self.sizes, self.whole_layers
        if budget is not None:
            sizes = sizes_for(budget, sizes, self.config, layers)
        require_kept(take_back, sizes, layers)
        return Session(
            self.layers, sizes, self.dtype, self.device, owner=self, take_back=take_back, part=self.part
        )

    @property
    def identity(self) -> dict[str, str]:
        """What a saved session must have in common with this decoder to be loaded, by name."""
        return {
            "dtype": str(self.dtype),
            "weights": self.fingerprint,
            "stores": "; ".join(str(layer.rule) for layer in self.whole_layers),
            "filters": filters_digest(self.filters) if self.filters else "none",
            "smoothing": " ".join(layer.smoothing for layer in self.whole_layers).strip() or "none",
        }

    @property
    def weights(self) -> Sequence[torch.Tensor]:
        """The tensors that the graphs read in place: weights, constants, and packed copies of weights."""
        return self.graphs.weights

    @property
    def graphs_compiled(self) -> int:
        """The number of graphs that Dynamo has compiled for this decoder so far."""
        modules = [*self.by_ends.modules, *([self.watch.module] if self.watch.module else [])]
        return sum(dynamo.graphs_of(module.forward.__code__) for module in modules)

    @property
    def unused_optimisations(self) -> dict[str, str]:
        """The optimisations that aren't used now, by name, each with the reason; see `qfpass.report`."""
        on_processor = self.device.type == "cpu"
        no_processor = None if on_processor else f"the device is {self.device.type}"
        no_vectors = "Inductor knows no vector instructions of this processor"
        reasons = {
            "piecewise": self.graphs.why_not_piecewise,
            "replay": self.replays.why_not("step"),
            "own_loops": no_processor or (None if self.graphs.own_loops else no_vectors),
        }
        if self.config.backend != "inductor":
            reasons = dict.fromkeys(reasons, f"the backend is {self.config.backend!r}")
        return {**self._skipped, **{name: reason for name, reason in reasons.items() if reason}}

    def chunk(
        self,
        tokens: Tokens,
        stores: Stores,
        row: Row,
        sizes: Sizes,
        wanted: torch.Tensor,
        call_end: int,
        may_be_taken_back: bool = False,
    ) -> torch.Tensor | None:
        """Read tokens [B, S], S > 1, into `stores`; logits [B, len(wanted), V], None if nothing is wanted.

        Args:
            row: how far all B rows are.
            wanted: indices of the tokens whose logits are returned.
            call_end: the position of the last token of the call that the chunk is part of.
            may_be_taken_back: these are drafts. Calls of few tokens are frequent then, and so are worth
                graphs of their own.
        """
        self._packed.follow_changes()
        graphs = self.by_ends[tokens.ends]
        few = graphs.few if may_be_taken_back and len(tokens.ids) == 1 else None
        is_short = few is not None and max(tokens.columns, len(wanted)) <= few.longest
        reader = few if few and is_short else graphs
        position = torch.arange(row.position, row.position + tokens.columns, device=self.device)
        position = position.expand(len(tokens.ids), -1).contiguous()
        text, *axes = tokens.inputs()
        for tensor, dim in ((text, 1), (position, 1), *((each, 2) for each in axes)):
            mark_length(tensor, dim, reader.longest)
        inputs = self.inputs(row.tokens, None, stores, [sizes], call_end)
        hidden = reader.chunk(text, position, *axes, *inputs)
        if len(wanted) == 0:
            return None
        chosen = hidden[:, wanted.to(hidden.device)]
        return chosen if reader.head is None else _logits(reader.head, chosen)

    def step(
        self,
        tokens: Tokens,
        stores: Stores,
        rows: Sequence[Row],
        sizes: Sequence[Sizes],
        reading_rows: Sequence[int],
        overwritten: Overwritten | None,
    ) -> torch.Tensor:
        """Read tokens [B, 1], one per row, into `stores`; logits [B, 1, V].

        Args:
            sizes: of each row; those of the reading rows have the same filters.
            reading_rows: indices of the rows that really read a token; results of the others are meaningless.
            overwritten: what `watch` found that this step overwrites, with the slots; None if not asked.
        """
        self._packed.follow_changes()
        read = [rows[i].tokens + 1 for i in reading_rows]
        budgets = [sizes[i] for i in reading_rows]
        is_full = all_equal(budgets) and min(read) >= self._most_slots
        lengths = None
        if not is_full and not (all_equal(read) and all_equal(budgets)):
            lengths = torch.tensor([row.tokens + 1 for row in rows], device=self.device)
            if self._batch_sizes - {len(rows)}:
                # The graphs take any number of rows by now. Lengths of a fixed size would fix that number
                # inside a region, and Dynamo could not reuse the region.
                dynamo.maybe_mark_dynamic(lengths, 0)
        self._batch_sizes.add(len(rows))
        stores.set_write_slots(
            overwritten.write_slots(stores)
            if overwritten
            else slots_of_next(stores, rows, sizes, self.device)
        )
        position = overwritten.position if overwritten else positions_of(rows, self.device)

        graphs = self.by_ends[tokens.ends]

        def prepare() -> Callable[..., torch.Tensor]:
            inputs = self.inputs(max(read), lengths, stores, budgets, call_end=0)
            return lambda *given: graphs.step(*given, *inputs)

        text, *axes = tokens.inputs()
        if is_full:  # from now on every step runs the same kernels on the same memory
            kind, slots = "step" if tokens.ends == Ends() else f"step by {tokens.ends}", budgets[0].slots
            return self.replays.run(kind, prepare, stores, text, position, *axes, variant=slots).clone()
        return prepare()(text, position, *axes)


def _logits(head: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
    """Logits [B, T, V] of hidden [B, T, E]; one token is doubled, so that one graph serves every T."""
    tokens = hidden.shape[1]
    if tokens == 1:
        hidden = hidden.repeat(1, 2, 1)
    hidden = hidden.contiguous()
    dynamo.mark_dynamic(hidden, 1)
    return head(hidden)[:, :tokens]
