"""The model that is examined, and what it compiles to."""

from functools import cached_property
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin

from ...pipeline import compile as compile_model
from ...proof.verify import original_logits
from .tiny import CONTEXT

TOKENS, CHUNK, BATCH = 40, 9, 2
SLOTS, RECENT, SINKS = 12, 4, 2


class Subject:
    """A model; what is made of it is made when it is first asked for, and once.

    Attributes:
        model: the original.
        has_usual_generate: whether it writes as transformers' models do; another way has other arguments.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.has_usual_generate = getattr(type(model), "generate", None) is GenerationMixin.generate

    @cached_property
    def complete(self) -> Any:
        """The compiled model that keeps every key."""
        return compile_completely(self.model)

    @cached_property
    def bounded(self) -> Any:
        """The compiled model with small stores."""
        return compile_model(
            self.model, budget=SLOTS, recent=RECENT, sinks=SINKS, chunk=CHUNK, score="random",
            context_length=CONTEXT, backend="eager", verify=False,
        )  # fmt: skip

    @cached_property
    def ids(self) -> torch.Tensor:
        """Random ids [BATCH, TOKENS]."""
        vocabulary = original_logits(self.model, torch.zeros(1, 2, dtype=torch.long)).shape[-1]
        generator = torch.Generator().manual_seed(1)
        return torch.randint(vocabulary, (BATCH, TOKENS), generator=generator)

    @cached_property
    def logits(self) -> torch.Tensor:
        """The original's logits [B, S, V] for `ids`."""
        return original_logits(self.model, self.ids)


def compile_completely(model: nn.Module) -> Any:
    """The model compiled with every key kept, and proven."""
    return compile_model(model, ratio=1, context_length=CONTEXT, chunk=CHUNK, backend="eager")
