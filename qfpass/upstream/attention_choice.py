"""Tells which attention implementation a transformers model runs."""

from torch import nn

from .entry import Needed


@Needed
def attention_choice(model: nn.Module) -> str | None:
    """The name, such as "sdpa", that set_attn_implementation() takes; None for a model not of transformers.

    Without it: a model that runs a kernel of its own is traced as it is, and its attention may not be found.
    """
    return getattr(getattr(model, "config", None), "_attn_implementation", None)
