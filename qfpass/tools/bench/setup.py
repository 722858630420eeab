"""How a model is loaded and compiled for a measurement, in this process or a fresh one."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from ...config import Config
from ...model.compiled_decoder import CompiledDecoder
from ...pipeline import build, compile
from ...store.ring import RingRule
from ..evaluate.models import DTYPES, load_config, load_model
from .contenders import BoundedContender, FullCache

ROOM = 1024  # tokens that a measurement may read past the longest context


@dataclass(frozen=True)
class Setup:
    """All settings of a model and its compile, as plain values that can be sent to another process.

    Attributes:
        model: a folder or hub name.
        filters: folder of the Q-Filters; None finds or makes some.
        layers: if given, the model has this many layers and random weights.
        mode: torch.compile's mode; None for the default.
    """

    model: str
    dtype: str = "float32"
    device: str = "cpu"
    score: str = "published"
    filters: str | None = None
    backend: str = "inductor"
    mode: str | None = None
    layers: int | None = None

    @property
    def place(self) -> torch.device:
        """The device as torch's object."""
        return torch.device(self.device)

    def load(self) -> Any:
        """The model, in eval mode."""
        if self.layers is None:
            return load_model(self.model, self.dtype, self.device)
        config = load_config(self.model)
        config.num_hidden_layers = self.layers
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=DTYPES[self.dtype])
        return model.eval().to(self.place)

    def compile(self, model: nn.Module, **sizes: Any) -> CompiledDecoder:
        """The result of qfpass.compile with these settings and `sizes`."""
        return compile(model, **self._settings(), **sizes)

    def bounded(
        self, model: nn.Module, slots: int, context: int, name: str, **options: Any
    ) -> BoundedContender:
        """A contender with `slots` slots a head for `context` tokens; `options` go to qfpass.compile."""
        sizes = {"budget": slots, "context_length": context + ROOM}
        return BoundedContender(self.compile(model, **sizes, verify=False, **options), name)

    def unevicted(self, model: nn.Module, slots: int, context: int) -> BoundedContender:
        """A contender with `slots` slots a head but no scores: every layer is a ring."""
        settings = self._settings()
        options = {"mode": settings.pop("mode")} if "mode" in settings else {}
        config = Config(
            budget=slots, context_length=context + ROOM, verify=False, compile_options=options, **settings
        )
        made = build(model, config, choose_rule=lambda *_: RingRule(slots))
        return BoundedContender(made, f"qfpass, {slots} slots without eviction")

    def _settings(self) -> dict[str, Any]:
        mode = {} if self.mode is None else {"mode": self.mode}
        return {"score": self.score, "filters": self.filters, "backend": self.backend, **mode}


def full_caches(model: Any, backend: str) -> dict[str, FullCache]:
    """Contenders with transformers' own caches: "eager", "compiled" and "static"."""
    dynamic = torch.compile(model.forward, dynamic=True, backend=backend)
    static = torch.compile(model.forward, dynamic=False, backend=backend)
    return {
        "eager": FullCache(model, "DynamicCache, eager", model.forward),
        "compiled": FullCache(model, "DynamicCache, torch.compile", dynamic),
        "static": FullCache(model, "StaticCache, torch.compile", static, is_static=True),
    }
