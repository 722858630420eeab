"""Find the model to compile in the object that is passed, which may be a wrapper."""

from typing import Any

from torch import nn

from ..errors import CaptureError
from ..upstream.module_object import inside_torch_compile


def original_of(model: nn.Module) -> nn.Module:
    """The original of a compiled model, the model in a wrapper of torch.compile or PEFT, or `model` itself.

    Raises:
        CaptureError: a PEFT adapter puts learned tokens before the text.
    """
    model = inside_torch_compile(getattr(model, "qfpass_original", model))
    base: Any = getattr(model, "get_base_model", None)
    if base is None or not hasattr(model, "peft_config"):
        return model
    adapters: Any = model.peft_config
    for name, adapter in adapters.items():
        if getattr(adapter, "is_prompt_learning", False):
            raise CaptureError(
                f"PEFT's adapter {name!r} puts learned tokens before the text, which qfpass doesn't compile: "
                "compile model.get_base_model() to run without it."
            )
    return original_of(base())
