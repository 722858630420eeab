"""Census: tiny random models of every causal family, compiled and compared with what they were made from."""

from .examine import Entry, check_model, examine
from .run import census, examine_family, families
from .table import page

__all__ = ["Entry", "census", "check_model", "examine", "examine_family", "families", "page"]
