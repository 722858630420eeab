"""The lowered decoder: its compiled graphs, run on stores.

Every mix of prompts and steps of one batch size needs code for one token (`step`), a chunk of any length
(`chunk`, which gives hidden states), the logits of chosen tokens (`head`), and what a step is about to
overwrite (`watch`); a step whose rows have filled different numbers of slots needs more.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from ..config import Config, Sizes
from ..filters import QFilters, TrainedFilters
from ..graph.regions import Outlined
from ..graph.rewrite import Site, bounded_shares
from ..graph.rotary import Turn
from ..upstream import dynamo
from .as_compiled import as_compiled
from .budget import sizes_for
from .graphs import Graphs
from .in_turn import InTurn
from .lower import mark_length
from .overwritten import Overwritten, Watch, slots_taken
from .replays import Replays
from .rows import Row, all_equal
from .session import Session
from .stores import Stores
from .weights import Copied


class Decoder:
    """A decoder on stores, compiled; holds no state of any text.

    Attributes:
        replays: of steps on full stores.
        watch: finds what a step will overwrite.
        vocabulary: token ids are below this number; None where the graph doesn't tell.
        turns: what moves each site's keys to other positions; none if they never are.
        skipped: optimisations of the capture that weren't used, each with the reason.
    """

    def __init__(
        self,
        outlined: Outlined,
        sites: Sequence[Site],
        filters: QFilters | TrainedFilters | None,
        sizes: Sizes,
        config: Config,
        device: torch.device,
        dtype: torch.dtype,
        fingerprint: str,
        vocabulary: int | None,
        turns: Sequence[Turn | None],
        skipped: Mapping[str, str],
    ) -> None:
        self._skipped = skipped
        self.fingerprint, self.vocabulary, self.turns = fingerprint, vocabulary, tuple(turns)
        self.sites, self.sizes, self.config = tuple(sites), sizes, config
        self.device, self.dtype, self.filters = device, dtype, filters
        self.outlined = outlined
        self._turn = InTurn()
        self._default_dtype = torch.get_default_dtype()
        self._copied = Copied(outlined.copied)
        self._graphs = Graphs(outlined, config, longest=max(3, sizes.chunk))
        options = config.compile_options.get("options") or {}
        self.replays = Replays(device, self._graphs.weights, options, config.switches.replay)
        self.watch = Watch(config, self.replays)
        self._shares = bounded_shares(sites)
        self._filters = dict[int, tuple[torch.Tensor, ...]]()
        self._most = max(sizes.context_length, *(site.rule.slots for site in sites))
        self._count = torch.empty(self._most + 1, device=device)
        self._batches = set[int]()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around what runs a graph: threads take turns, and torch computes as it did at compile."""
        with self._turn.held(), as_compiled(self.device, self._default_dtype):
            yield

    def session(self, budget: int | None = None) -> Session:
        """A new, empty session, which uses `budget` slots a head where layers are bounded.

        Raises:
            ConfigError, SessionError: a budget that can't be had.
        """
        sizes = self.sizes if budget is None else sizes_for(budget, self.sizes, self.config, self.sites)
        return Session(self.sites, sizes, self.dtype, self.device, owner=self)

    @property
    def identity(self) -> dict[str, str]:
        """What a saved session must have in common with this decoder to go on here."""
        filters = hashlib.sha256()
        for tensor in self.filters.filters if self.filters else ():
            filters.update(tensor.cpu().numpy().tobytes())
        return {
            "dtype": str(self.dtype),
            "weights": self.fingerprint,
            "stores": "; ".join(str(site.rule) for site in self.sites),
            "filters": filters.hexdigest() if self.filters else "none",
        }

    @property
    def weights(self) -> Sequence[torch.Tensor]:
        """What the graphs read where it lies: the model's weights and constants, and copies of them."""
        return self._graphs.weights

    @property
    def weights_read(self) -> Sequence[torch.Tensor]:
        """`weights`, and those of which there are copies."""
        return [*self.weights, *self.outlined.copied]

    @property
    def graphs_compiled(self) -> int:
        """Graphs that torch.compile has made for this decoder so far."""
        modules = [*self._graphs.modules, *([self.watch.module] if self.watch.module else [])]
        return sum(dynamo.graphs_of(module.forward.__code__) for module in modules)

    @property
    def unused(self) -> dict[str, str]:
        """Optimisations that aren't used here as things stand, each with the reason; see `qfpass.report`."""
        on_processor = self.device.type == "cpu"
        no_processor = None if on_processor else f"the device is {self.device.type}"
        has_loops = any(site.reading.own_loops for site in self.sites)
        no_loops = None if has_loops else "Inductor knows no vector instructions of this processor"
        reasons = {
            "piecewise": self._graphs.why_whole,
            "replay": self.replays.why_not("step"),
            "own_loops": no_processor or no_loops,
            "vector_trials": no_processor,
            "guard_filter": None,
        }
        if self.config.backend != "inductor":
            reasons = dict.fromkeys(reasons, f"the backend is {self.config.backend!r}")
        return {**self._skipped, **{name: reason for name, reason in reasons.items() if reason}}

    def chunk(
        self,
        ids: torch.Tensor,
        stores: Stores,
        row: Row,
        sizes: Sizes,
        wanted: torch.Tensor,
        call_end: int,
    ) -> torch.Tensor | None:
        """Read ids [B, S], S > 1, of rows that stand at `row`; logits [B, len(wanted), V], None if empty.

        `call_end` is the position of the last token of the call that the chunk is part of.
        """
        self._copied.check()
        position = torch.arange(row.position, row.position + ids.shape[1], device=self.device)
        position = position.expand(ids.shape[0], -1).contiguous()
        ids = ids.clone(memory_format=torch.contiguous_format)
        for tensor in (ids, position):
            mark_length(tensor, 1, self._graphs.longest)
        reach = self._reach(row.tokens, None, sizes, call_end)
        hidden = self._graphs.chunk(ids, position, *reach, *self._inputs(stores, sizes))
        if len(wanted) == 0:
            return None
        chosen = hidden[:, wanted.to(self.device)]
        return chosen if self._graphs.head is None else self._logits(chosen)

    def step(
        self,
        ids: torch.Tensor,
        stores: Stores,
        rows: Sequence[Row],
        sizes: Sizes,
        counted: Sequence[int],
        overwritten: Overwritten | None,
    ) -> torch.Tensor:
        """Read ids [B, 1], one token a row; logits [B, 1, V]. Only the rows `counted` need be right.

        `overwritten` is what `watch` found that this step overwrites in these stores, if it was asked.
        """
        self._copied.check()
        tokens = [rows[i].tokens + 1 for i in counted]
        lengths, is_full = None, min(tokens) >= max(site.rule.slots for site in self.sites)
        if not all_equal(tokens) and not is_full:
            lengths = torch.tensor([row.tokens + 1 for row in rows], device=self.device)
            if self._batches - {len(rows)}:
                # Other inputs have any number of rows by now. Lengths that fix it would do so within a
                # region, which Dynamo then can't use again.
                dynamo.maybe_mark_dynamic(lengths, 0)
        self._batches.add(len(rows))
        stores.aim(overwritten.slots if overwritten else slots_taken(stores, rows, sizes, self.device))
        position = torch.tensor([[row.position] for row in rows], device=self.device)

        def prepare() -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
            inputs = *self._reach(max(tokens), lengths, sizes, call_end=0), *self._inputs(stores, sizes)
            return lambda ids, position: self._graphs.step(ids, position, *inputs)

        ids = ids.clone(memory_format=torch.contiguous_format)
        if is_full and self.config.backend == "inductor":  # every step is the same from now on
            return self.replays.run("step", prepare, stores, ids, position).clone()
        return prepare()(ids, position)

    def _reach(
        self, tokens: int, lengths: torch.Tensor | None, sizes: Sizes, call_end: int
    ) -> tuple[Any, ...]:
        """The inputs that say how much of the stores is filled; see `rewrite`."""
        seen = _countable(self._count[: min(tokens, self._most)])
        held = [_countable(self._count[: min(tokens, sizes.slots_of(share))]) for share in self._shares]
        recent, end = (torch.tensor(number, device=self.device) for number in (sizes.recent, call_end))
        return seen, lengths, recent, end, *held

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The head on hidden [B, T, E]; one token is read twice, so that one graph serves every T."""
        tokens = hidden.shape[1]
        if tokens == 1:
            hidden = hidden.repeat(1, 2, 1)
        hidden = hidden.contiguous()
        dynamo.mark_dynamic(hidden, 1)
        assert self._graphs.head is not None
        return self._graphs.head(hidden)[:, :tokens]

    def _inputs(self, stores: Stores, sizes: Sizes) -> list[torch.Tensor]:
        inputs: list[torch.Tensor] = []
        filters = self._filters_for(sizes.slots)
        for i, (site, store) in enumerate(zip(self.sites, stores, strict=True)):
            if site.rule.needs_filters:
                inputs.append(filters[site.attention.index])
            if site.rule.is_bounded:
                inputs.append(stores.slots[i])
            inputs.extend(store)
        return inputs

    def _filters_for(self, slots: int) -> tuple[torch.Tensor, ...]:
        """The filters of every site for a budget."""
        if slots not in self._filters:
            self._filters[slots] = self.filters.for_slots(slots) if self.filters else ()
        return self._filters[slots]


def _countable(tensor: torch.Tensor) -> torch.Tensor:
    """Mark a tensor [n] whose size is all that matters, so that no size is special."""
    dynamo.mark_unbacked(tensor, 0)
    return tensor
