"""Evaluation of models with bounded stores against the uncompressed model.

`evaluate.perplexity`, `needle`, `ruler` and `generation` measure one model: a compiled one, or a Hugging Face
model, which gives the uncompressed row. `evaluate.with_methods` makes the models to compare from scores and
budgets; `evaluate.compare` measures each and records the results. The command line is `qfpass evaluate`.
"""

from .footprint import Footprint
from .greedy_agreement import GenerationResult, generation, greedy
from .needle_test import NeedleResult, needle
from .plots import plot
from .prompts import Asker
from .protocol import Bounded, Method, with_methods
from .report import Evaluation, compare
from .ruler_benchmark.run import RulerResult, ruler
from .ruler_benchmark.tasks import TASKS
from .streamed_perplexity import Perplexity, perplexity
from .text_reader import open_reader
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
