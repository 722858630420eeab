"""Report: every attention that was rewritten, what it keeps and what that costs."""

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from torch import nn

from .graph.rewrite import Site
from .runtime.decoder import Decoder
from .runtime.model import decoder_of
from .store.slots import Slots


@dataclass(frozen=True)
class SiteReport:
    """One attention; bytes are keys and values of one row."""

    index: int
    name: str
    span: str
    query_heads: int
    kv_heads: int
    head_dim: int
    slots: int
    stored: str
    nbytes: int
    full_nbytes: int
    kernel: str
    score: str


@dataclass(frozen=True)
class Report:
    """What `qfpass.compile` made of a model; print it for a table."""

    sites: tuple[SiteReport, ...]
    context_length: int
    chunk: int
    region_kinds: int
    graphs_compiled: int

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values of one row, all sites."""
        return sum(site.nbytes for site in self.sites)

    @property
    def full_nbytes(self) -> int:
        """The same for a cache that keeps every key of the context length."""
        return sum(site.full_nbytes for site in self.sites)

    def __rich__(self) -> Table:
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
        for s in self.sites:
            heads = f"{s.query_heads}/{s.kv_heads}"
            row = (s.index, s.name, s.span, heads, s.head_dim, s.slots, s.stored, f"{s.nbytes / 2**20:.2f}")
            table.add_row(*map(str, row), s.kernel, s.score)
        share = self.full_nbytes / self.nbytes
        table.caption = (
            f"{self.nbytes / 2**20:.1f} MiB a row against {self.full_nbytes / 2**20:.1f} MiB for the full "
            f"cache of {self.context_length} tokens ({share:.1f}x smaller); chunks of {self.chunk}; "
            f"{self.region_kinds} kinds of layer; {self.graphs_compiled} graphs compiled"
        )
        return table

    def __str__(self) -> str:
        console = Console(width=140)
        with console.capture() as captured:
            console.print(self)
        return captured.get()


def report(model: nn.Module) -> Report:
    """The report of a model that `qfpass.compile` returned."""
    decoder = decoder_of(model)
    return Report(
        tuple(_site_report(decoder, site) for site in decoder.sites),
        decoder.sizes.context_length,
        decoder.sizes.chunk,
        decoder.outlined.kinds,
        decoder.graphs_compiled,
    )


def _site_report(decoder: Decoder, site: Site) -> SiteReport:
    attention = site.attention
    dims = (attention.head_dim, attention.value_dim, decoder.dtype)
    slot_bytes = attention.kv_heads * site.rule.store_type.slot_nbytes(*dims)
    token_bytes = attention.kv_heads * Slots.slot_nbytes(*dims)
    return SiteReport(
        attention.index,
        attention.name,
        str(attention.span),
        attention.query_heads,
        attention.kv_heads,
        attention.head_dim,
        site.rule.slots,
        str(getattr(site.rule, "store_dtype", None) or decoder.dtype).removeprefix("torch."),
        site.rule.slots * slot_bytes,
        decoder.sizes.context_length * token_bytes,
        site.reading.kernel.name,
        site.rule.score,
    )
