"""The measurements of one run, by name, with their sizes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ...config import DEFAULT_CHUNK
from ...upstream.dynamo import recompiling_at_most
from .bandwidth import weight_nbytes
from .compile_time import compile_time, depth, recompiles
from .contenders import BoundedContender, Contender
from .decode import decode, steady
from .memory import memory
from .prefill import CHUNK, chunks, long_prefill, prefill
from .profile import profile
from .record import Figure
from .setup import Setup, full_caches

GRAPHS = 256  # of one function: contenders compile anew for every batch and static size


@dataclass(frozen=True)
class Workload:
    """The sizes at which a run measures.

    Attributes:
        tokens: tokens seen before a step or a chunk, ascending.
        static: those of `tokens` at which StaticCache is measured too (each needs a compile).
        slots: slots a head; the first is compared with other contenders, the others only in `steady`.
        batches: numbers of rows; those after the first are measured at `batch_tokens` tokens.
        batch_tokens: tokens seen before a step of several rows.
        whole: tokens of prompts that are read completely.
        long: tokens of prompts whose speed is computed from the chunks.
        memory_tokens, memory_ratio: the prompt whose peak memory is measured, and the ratio.
        rounds, seconds: see `take_turns`.
        calls: calls of random lengths, during which compiled graphs are counted.
    """

    tokens: tuple[int, ...] = (512, 2048, 8192, 16384, 32768, 65536)
    static: tuple[int, ...] = (2048, 8192)
    slots: tuple[int, ...] = (1024, 256, 4096)
    batches: tuple[int, ...] = (1, 4, 16)
    batch_tokens: int = 2048
    whole: tuple[int, ...] = (2048, 8192)
    long: tuple[int, ...] = (8192, 32768, 65536)
    memory_tokens: int = 65536
    memory_ratio: float = 32.0
    rounds: int = 40
    seconds: float = 40.0
    calls: int = 200


QUICK = Workload(
    tokens=(512, 2048), static=(2048,), slots=(256,), batches=(1, 4), batch_tokens=512, whole=(1024,),
    long=(2048,), memory_tokens=4096, memory_ratio=8.0, rounds=8, seconds=10.0, calls=20,
)  # fmt: skip
CONTENDERS = ("eager", "compiled", "static", "full", "bounded", "unevicted")


class Measurements:
    """One model in one dtype; each measurement is a method that gives figures."""

    def __init__(self, setup: Setup, sizes: Workload, contenders: tuple[str, ...] = CONTENDERS) -> None:
        self.setup, self.sizes, self._wanted = setup, sizes, contenders
        self._model: Any = None
        self._made: dict[Any, Contender] = {}

    def decode(self) -> Iterator[Figure]:
        """Steps of every contender at every length; with several rows, only of those that set up quickly."""
        for tokens in self.sizes.tokens:
            kinds = [k for k in self._wanted if k != "static" or tokens in self.sizes.static]
            yield from decode(self._contenders(kinds), tokens, self.sizes.batches[0], **self._turns())
        for batch in self.sizes.batches[1:]:
            kinds = [k for k in self._wanted if k not in ("static", "compiled", "full")]
            yield from decode(self._contenders(kinds), self.sizes.batch_tokens, batch, **self._turns())

    def steady(self) -> Iterator[Figure]:
        """Steps of bounded stores of all sizes over all contexts, with and without eviction."""
        kept = [k for k in ("bounded", "unevicted") if k in self._wanted]
        bounded = [*self._contenders(kept), *map(self._bounded, self.sizes.slots[1:])]
        full = [n for n in self.sizes.tokens if n > max(self.sizes.slots)]
        yield from steady(bounded, full or self.sizes.tokens[-1:], **self._turns())

    def chunk(self) -> Iterator[Figure]:
        """Chunks at several positions of a long text, and the speed of long prompts computed from them."""
        last = (max(self.sizes.tokens) - 1) // CHUNK * CHUNK
        places = sorted({0, *(n // CHUNK * CHUNK for n in self.sizes.tokens if n < last), last})
        kinds = [k for k in ("eager", "full", "bounded") if k in self._wanted]
        turns, figures = self._turns(), list[Figure]()
        del turns["weights"]
        for tokens in places:
            made = chunks(self._contenders(kinds), tokens, self.model.config.vocab_size, **turns)
            figures += made
            yield from made
        for tokens in self.sizes.long:
            yield from long_prefill(figures, tokens)

    def prefill(self) -> Iterator[Figure]:
        """Whole prompts, read with an empty cache."""
        kinds = [k for k in ("eager", "bounded") if k in self._wanted]
        turns = self._turns()
        del turns["weights"]
        for tokens in self.sizes.whole:
            yield from prefill(self._contenders(kinds), tokens, self.model.config.vocab_size, **turns)

    def memory(self) -> Iterator[Figure]:
        """Peak memory, in fresh processes."""
        yield from memory(self.setup, self.sizes.memory_tokens, self.sizes.memory_ratio)

    def compile(self) -> Iterator[Figure]:
        """Compile times in fresh processes: cold, warm, twice as deep; and graphs compiled later."""
        slots = self.sizes.slots[0]
        yield from compile_time(self.setup, slots)
        layers = self.model.config.num_hidden_layers
        yield from depth(self.setup, (layers, 2 * layers), slots)
        yield from recompiles(self.setup, slots, self.sizes.calls)

    def profile(self) -> Iterator[Figure]:
        """The kernels of a step, in a fresh process."""
        yield from profile(self.setup, self.sizes.slots[0])

    @property
    def model(self) -> Any:
        """The original model, loaded on first use."""
        if self._model is None:
            self._model = self.setup.load()
        return self._model

    @property
    def settings(self) -> dict[str, Any]:
        """The run's settings for the record, with folders' names instead of their paths."""
        names = {"model": Path(self.setup.model).name, "filters": Path(self.setup.filters or "").name}
        return {**asdict(self.setup), **names, **asdict(self.sizes), "chunk": DEFAULT_CHUNK}

    def _turns(self) -> dict[str, Any]:
        sizes = {"rounds": self.sizes.rounds, "seconds": self.sizes.seconds, "device": self.setup.place}
        return {**sizes, "weights": weight_nbytes(self.model), "dtype": self.setup.dtype}

    def _contenders(self, kinds: Sequence[str]) -> list[Contender]:
        return [self._contender(kind) for kind in kinds]

    def _contender(self, kind: str) -> Contender:
        if kind in ("eager", "compiled", "static") and kind not in self._made:
            self._made.update(full_caches(self.model, self.setup.backend))
        if kind == "bounded":
            return self._bounded(self.sizes.slots[0])
        if kind not in self._made:
            context, slots = max(self.sizes.tokens), self.sizes.slots[0]
            if kind == "full":
                made = self.setup.compile(self.model, context_length=context + 1024, verify=False)
                self._made[kind] = BoundedContender(made, "qfpass, ratio 1")
            else:
                self._made[kind] = self.setup.unevicted(self.model, slots, context)
        return self._made[kind]

    def _bounded(self, slots: int) -> Contender:
        if slots not in self._made:
            context = max(self.sizes.tokens)
            self._made[slots] = self.setup.bounded(self.model, slots, context, f"qfpass, {slots} slots")
        return self._made[slots]


Measure = Callable[[Measurements], Iterator[Figure]]


def _all_compiled(measure: Measure) -> Measure:
    """The measurement, which fails rather than run something that Dynamo has refused to compile again."""

    def measured(run: Measurements) -> Iterator[Figure]:
        with recompiling_at_most(GRAPHS):
            yield from measure(run)

    return measured


MEASURES: dict[str, Measure] = {
    "decode": _all_compiled(Measurements.decode),
    "steady": _all_compiled(Measurements.steady),
    "chunk": _all_compiled(Measurements.chunk),
    "prefill": _all_compiled(Measurements.prefill),
    "memory": Measurements.memory,
    "compile": Measurements.compile,
    "profile": Measurements.profile,
}
