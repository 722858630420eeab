"""Census: compiles a tiny random model of every causal family and compares it with the original."""

from .examine import Entry, check_model, examine
from .run import census, examine_family, families
from .table import page

__all__ = ["Entry", "census", "check_model", "examine", "examine_family", "families", "page"]
