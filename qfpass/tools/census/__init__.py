"""Census: compiles a tiny random model of every family of decoders and compares it with the original."""

from .columns import COLUMNS
from .entry import Entry, Verdict, read_record, write_record
from .examine import examine
from .families import families, family_model
from .run import Inquiry, census, inquiry
from .table import page

__all__ = [
    "COLUMNS", "Verdict", "Entry", "Inquiry", "census", "examine", "families", "family_model", "page",
    "inquiry", "read_record", "write_record",
]  # fmt: skip
