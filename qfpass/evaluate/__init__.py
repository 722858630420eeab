"""Evaluation of models with bounded stores against the model they were made from.

`evaluate.perplexity`, `needle`, `ruler` and `generation` measure one model: compiled, or any Hugging Face
model, which is the uncompressed row. `evaluate.with_methods` makes what to compare out of scores and
budgets, `evaluate.compare` runs and records it. The command line is `qfpass evaluate`.
"""

from .footprint import Footprint
from .generation import GenerationResult, generation, greedy
from .needle import NeedleResult, needle
from .perplexity import Perplexity, perplexity
from .plots import plot
from .prompts import Asker
from .protocol import Bounded, Method, with_methods
from .reader import open_reader
from .report import Evaluation, compare
from .ruler import RulerResult, ruler
from .ruler_tasks import TASKS
from .texts import read_text, read_texts, token_rows

__all__ = [
    "Asker",
    "Bounded",
    "Evaluation",
    "Footprint",
    "GenerationResult",
    "Method",
    "NeedleResult",
    "Perplexity",
    "RulerResult",
    "TASKS",
    "compare",
    "generation",
    "greedy",
    "needle",
    "open_reader",
    "perplexity",
    "plot",
    "read_text",
    "read_texts",
    "ruler",
    "token_rows",
    "with_methods",
]
