"""The report on a compiled model: what each attention keeps, its bytes, and which optimisations are on."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from rich.console import Console, Group
from rich.table import Table
from torch import nn

from .config import STORE_KINDS
from .decoder.decoder import Decoder
from .model.compiled_decoder import decoder_of
from .store.kv_form import KVForm
from .store.layer import Layer
from .store.ring import Ring
from .store.slots import Slots
from .store.store_kind import StoreKind, token_nbytes
from .switches import NAMES
from .upstream.entry import failures_of


@dataclass(frozen=True)
class SiteReport(Layer):
    """One attention that was rewritten.

    Attributes:
        slots: slots a head.
        stored: the dtype of stored keys and values, or the name of your own `qfpass.StoreKind`.
        nbytes: bytes of the stored keys and values of one row.
        full_nbytes: the same for a cache that keeps every key of the context length.
        score: the name of the score.
    """

    slots: int
    stored: str
    nbytes: int
    full_nbytes: int
    score: str


@dataclass(frozen=True)
class OptimisationReport:
    """One of the optimisations in `qfpass.Switches`.

    Attributes:
        state: "on", "off by choice", "not available here" (with these versions) or "not used" (for this
            model, or not yet).
        reason: why it isn't on, or why a part of it isn't.
    """

    name: str
    state: str
    reason: str = ""


@dataclass(frozen=True)
class Report:
    """What `qfpass.compile` made of a model; prints as a table.

    Attributes:
        context_length: the most tokens that a session may see.
        chunk: how many tokens of a prompt are read at a time.
        region_kinds: the number of kinds of layer, each compiled once.
        graphs_compiled: the graphs that torch.compile has made so far.
        packed_nbytes: bytes of packed copies of quantised weights, which steps read.
        copied_nbytes: bytes of what these are copies of, which steps don't read.
        weight_nbytes: bytes of all weights.
        optimisations: one for each switch, as of now: some are used only once steps have run.
    """

    sites: tuple[SiteReport, ...]
    context_length: int
    chunk: int
    region_kinds: int
    graphs_compiled: int
    packed_nbytes: int
    copied_nbytes: int
    weight_nbytes: int
    optimisations: tuple[OptimisationReport, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the stored keys and values of one row, in all sites."""
        return sum(site.nbytes for site in self.sites)

    @property
    def full_nbytes(self) -> int:
        """The same for a cache that keeps every key of the context length."""
        return sum(site.full_nbytes for site in self.sites)

    def __rich__(self) -> Group:
        return Group(self._attentions_table(), self._optimisations_table())

    def _optimisations_table(self) -> Table:
        table = Table(title="optimisations", show_header=False)
        for each in self.optimisations:
            table.add_row(each.name, f"{each.state}: {each.reason}" if each.reason else each.state)
        return table

    def _attentions_table(self) -> Table:
        table = Table(title=f"{len(self.sites)} attentions on bounded stores")
        for column in (
            "#",
            "attention",
            "span",
            "heads",
            "dim",
            "slots",
            "stored in",
            "KV MiB",
            "kernel",
            "score",
        ):
            table.add_column(column)
        for alike in _alike(self.sites):
            s = alike[0]
            name = s.name if len(alike) == 1 else f"{s.name} and alike"
            heads, mib = f"{s.query_heads}/{s.kv_heads}", f"{sum(a.nbytes for a in alike) / 2**20:.2f}"
            row = (_numbers(alike), name, s.span, heads, s.head_dim, s.slots, s.stored, mib)
            table.add_row(*map(str, row), s.kernel, s.score)
        share = self.full_nbytes / self.nbytes
        table.caption = (
            f"{self.nbytes / 2**20:.1f} MiB a row against {self.full_nbytes / 2**20:.1f} MiB for the full "
            f"cache of {self.context_length} tokens ({share:.1f}x smaller); chunks of {self.chunk}; "
            f"{self.region_kinds} kinds of layer; {self.graphs_compiled} graphs compiled"
        )
        if self.packed_nbytes:
            sizes = (self.copied_nbytes, self.weight_nbytes, self.packed_nbytes)
            copied, weights, packed = (f"{size / 2**20:.1f}" for size in sizes)
            table.caption += f"; steps read {copied} of {weights} MiB of weights as {packed} of packed copies"
        return table

    def __str__(self) -> str:
        console = Console(width=140)
        with console.capture() as captured:
            console.print(self)
        return captured.get()


def _alike(sites: Iterable[SiteReport]) -> list[list[SiteReport]]:
    """Sites that differ in their numbers and names alone, together."""
    groups = dict[SiteReport, list[SiteReport]]()
    for site in sites:
        groups.setdefault(replace(site, index=0, name=""), []).append(site)
    return list(groups.values())


def _numbers(sites: Iterable[SiteReport]) -> str:
    """The sites' numbers, such as "0-4, 6"."""
    runs = list[list[int]]()
    for site in sites:
        if runs and runs[-1][-1] == site.index - 1:
            runs[-1].append(site.index)
        else:
            runs.append([site.index])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def report(model: nn.Module) -> Report:
    """The report of a model that `qfpass.compile` returned."""
    decoder = decoder_of(model)
    graphs = decoder.graphs
    copies = [made for each in graphs.packed for made in each.made]
    copied = [unread for each in graphs.packed for unread in each.unread]
    return Report(
        tuple(_site_report(decoder, layer) for layer in decoder.layers),
        decoder.sizes.context_length,
        decoder.sizes.chunk,
        graphs.kinds,
        decoder.graphs_compiled,
        nbytes_of(copies),
        nbytes_of(copied),
        nbytes_of(decoder.weights) - nbytes_of(copies),
        tuple(_optimisation_report(name, decoder) for name in NAMES),
    )


def _optimisation_report(name: str, decoder: Decoder) -> OptimisationReport:
    if not getattr(decoder.config.switches, name):
        return OptimisationReport(name, "off by choice")
    failed = "; ".join(failures_of(name))
    if reason := decoder.unused_optimisations.get(name):
        return OptimisationReport(name, "not available here" if failed else "not used", failed or reason)
    return OptimisationReport(name, "on", f"but for {failed}" if failed else "")


def nbytes_of(tensors: Iterable[torch.Tensor]) -> int:
    """The bytes of all tensors; one that occurs several times counts once."""
    return sum({id(tensor): tensor.nbytes for tensor in tensors}.values())


def _site_report(decoder: Decoder, layer: Layer) -> SiteReport:
    form = KVForm.of(layer, decoder.dtype, layer.device or decoder.device)
    return SiteReport(
        **vars(layer),
        slots=layer.rule.slots,
        stored=_stored_in(layer.rule.store_type, decoder.dtype),
        nbytes=layer.rule.slots * layer.rule.token_nbytes(form),
        full_nbytes=decoder.sizes.context_length * token_nbytes(Slots, form),
        score=str(layer.rule.score),
    )


def _stored_in(kind: type[StoreKind | Ring], dtype: torch.dtype) -> str:
    if kind in (Slots, Ring):
        return str(dtype).removeprefix("torch.")
    names = (str(name).removeprefix("torch.") for name, own in STORE_KINDS.items() if own is kind)
    return next(names, kind.__name__)
