"""Two models share an identity only if tracing them gives the same graph."""

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
import transformers.models.llama.modeling_llama as modeling_llama
from decoders import decoder
from tiny import FAMILIES
from torch import nn

from qfpass.graph.identity import identity


def llama(**settings: Any) -> nn.Module:
    return FAMILIES["llama"](**settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_weights_have_the_same_identity(family: str) -> None:
    first, second = (identity(FAMILIES[family](seed=seed)) for seed in (0, 1))
    assert first is not None
    assert first == second


def test_families_differ() -> None:
    assert len({identity(build()) for build in FAMILIES.values()}) == len(FAMILIES)


def test_another_process_gives_the_same() -> None:
    script = (
        "from decoders import decoder; from tiny import FAMILIES\n"
        "from qfpass.graph.identity import identity\n"
        "print(identity(FAMILIES['gemma3']()), identity(decoder()))"
    )
    folder = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == [identity(FAMILIES["gemma3"]()), identity(decoder())]


def _set_config(model: Any) -> None:
    model.config.rope_parameters["rope_theta"] = 5000.0


def _set_attribute(model: Any) -> None:
    model.model.layers[1].self_attn.scaling *= 2


def _tie(model: Any) -> None:
    model.model.layers[1].mlp = model.model.layers[0].mlp


def _replace_forward(model: Any) -> None:
    model.lm_head.forward = MethodType(lambda self, hidden: hidden @ self.weight.T, model.lm_head)


def _replace_forward_by_what_was_made(model: Any) -> None:
    scale = 2.0
    model.lm_head.forward = MethodType(lambda self, hidden: scale * hidden @ self.weight.T, model.lm_head)


@pytest.mark.parametrize(
    "change",
    [
        _set_config,
        _set_attribute,
        _tie,
        nn.Module.double,
        _replace_forward,
        _replace_forward_by_what_was_made,
    ],
)
def test_a_changed_model_differs(change: Callable[[Any], Any]) -> None:
    changed = llama()
    change(changed)
    assert identity(changed) not in (None, identity(llama()))


def test_what_a_function_took_is_part_of_it() -> None:
    def scaled(scale: float) -> nn.Module:
        model: Any = llama()
        model.lm_head.forward = MethodType(lambda self, hidden: scale * hidden, model.lm_head)
        return model

    assert identity(scaled(2.0)) not in (None, identity(scaled(3.0)))
    assert identity(scaled(2.0)) == identity(scaled(2.0))


def test_replaced_functions_and_methods_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(llama())
    with monkeypatch.context() as patch:
        patch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin, **_: (q, k))
        assert identity(llama()) not in (None, before)
    with monkeypatch.context() as patch:
        patch.setattr(modeling_llama.LlamaMLP, "forward", lambda self, hidden: hidden)
        assert identity(llama()) not in (None, before)
    assert identity(llama()) == before


def test_a_class_that_no_name_reaches_is_read() -> None:
    def head(scale: float) -> nn.Module:
        class Head(nn.Linear):
            def forward(self, input: torch.Tensor) -> torch.Tensor:
                return scale * super().forward(input)

        model: Any = llama()
        model.lm_head.__class__ = Head
        return model

    assert identity(head(2.0)) not in (None, identity(head(3.0)), identity(llama()))


def _hook(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda *_: None)


def _hold_a_tensor(model: Any) -> None:
    model.lm_head.scale = torch.ones(1)


def _hold_a_module_outside(model: Any) -> None:
    model.lm_head.others = [nn.Linear(2, 2)]


def _hold_an_object(model: Any) -> None:
    model.lm_head.lock = threading.Lock()


def _hold_itself(model: Any) -> None:
    model.lm_head.items = []
    model.lm_head.items.append(model.lm_head.items)


@pytest.mark.parametrize(
    "change", [_hook, _hold_a_tensor, _hold_a_module_outside, _hold_an_object, _hold_itself]
)
def test_what_cannot_be_told_has_no_identity(change: Callable[[Any], None]) -> None:
    model = llama()
    change(model)
    assert identity(model) is None
