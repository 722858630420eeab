"""The model itself, in what is given to be compiled."""

from typing import Any

from torch import nn

from ..errors import CaptureError
from ..upstream.module_object import inside_torch_compile


def original_of(model: nn.Module) -> nn.Module:
    """Of a compiled model its original, of the wrappers of torch.compile and PEFT what they wrap, or itself.

    Raises:
        CaptureError: PEFT's wrapper changes the text, not the model.
    """
    model = inside_torch_compile(getattr(model, "qfpass_original", model))
    if not (hasattr(model, "get_base_model") and hasattr(model, "peft_config")):
        return model
    adapters: dict[str, Any] = model.peft_config  # type: ignore[assignment]
    for name, adapter in adapters.items():
        if getattr(adapter, "is_prompt_learning", False):
            raise CaptureError(
                f"PEFT's adapter {name!r} puts learned tokens before the text, which qfpass doesn't compile: "
                "compile model.get_base_model() to run without it."
            )
    return original_of(model.get_base_model())  # type: ignore[operator]
