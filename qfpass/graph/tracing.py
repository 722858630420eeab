"""Settings under which a model is traced."""

import io
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stderr

import torch
from torch import nn

from ..upstream.attention_choice import attention_choice

log = logging.getLogger(__name__)
# Held while a model is traced: it holds fake tensors meanwhile, and torch's flags are set.
TRACING = threading.RLock()


@contextmanager
def trace_settings(model: nn.Module) -> Iterator[None]:
    """Inside, settings are those of a trace: no gradients, and SDPA as the attention where possible."""
    with torch.no_grad(), _sdpa_attention(model):
        yield


@contextmanager
def without_printed_graphs() -> Iterator[None]:
    """Inside, stderr is held back: it is printed if the body succeeds, and logged for debugging if it fails.

    torch.export prints the graphs that it fails on.
    """
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            yield
    except BaseException:
        log.debug("printed before the failure: %s", printed.getvalue())
        raise
    sys.stderr.write(printed.getvalue())


@contextmanager
def _sdpa_attention(model: nn.Module) -> Iterator[None]:
    """Inside, a Hugging Face model uses scaled_dot_product_attention, if it can."""
    before, choose = attention_choice(model), getattr(model, "set_attn_implementation", None)
    if before in (None, "sdpa") or choose is None:
        yield
        return
    try:
        choose("sdpa")
    except (ValueError, ImportError):  # the model has no such attention; its own may be found as well
        yield
        return
    try:
        yield
    finally:
        choose(before)


def without_autocast(model: nn.Module) -> AbstractContextManager[None]:
    """Around what traces or runs `model`: as it computes by itself, whatever the caller's autocast is."""
    device = next((parameter.device.type for parameter in model.parameters()), "cpu")
    return torch.autocast("cpu" if device == "meta" else device, enabled=False)
