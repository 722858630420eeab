"""Two models share an identity only if they run the same operators on the same operands."""

import functools
import os
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
from decoders import Decoder, causal, decoder, masked, places, text, within
from tiny import FAMILIES
from torch import nn

import qfpass
from qfpass.capture import computation_digest as module
from qfpass.capture.decoder_call import LogitsWrapper
from qfpass.graph.captured import LENGTH, example_inputs
from qfpass.upstream.fake_tensors import fakes

CONTEXT = 64


def identity(model: nn.Module) -> str | None:
    known = module.digest_computation(model, None, CONTEXT)
    return known and known.digest


def llama(**settings: Any) -> nn.Module:
    return FAMILIES["llama"](**settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_weights_have_the_same_identity(family: str) -> None:
    first, second = (identity(FAMILIES[family](seed=seed)) for seed in (0, 1))
    assert first is not None
    assert first == second


def test_families_differ() -> None:
    assert len({identity(build()) for build in FAMILIES.values()}) == len(FAMILIES)


@pytest.mark.parametrize("family", ["mistral", "gemma3"])
def test_windows_that_the_example_does_not_fill_differ(family: str) -> None:
    known = {identity(FAMILIES[family](window=window)) for window in (LENGTH + 1, LENGTH + 2, 100)}
    assert len(known) == 3


def test_another_process_gives_the_same() -> None:
    script = (
        "from decoders import decoder; from tiny import FAMILIES\n"
        "from qfpass.capture.computation_digest import digest_computation\n"
        "print(*(digest_computation(model, None, 64).digest for model in (FAMILIES['llama'](), decoder())))"
    )
    folder = Path(__file__).parents[1]
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env={**os.environ, "PYTHONHASHSEED": "7"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.split() == [identity(FAMILIES["llama"]()), identity(decoder())]


def _set_config(model: Any) -> None:
    model.config.hidden_act, model.model.layers[0].mlp.act_fn = "relu", nn.ReLU()


def _set_attribute(model: Any) -> None:
    model.model.layers[1].self_attn.scaling *= 2


def _tie(model: Any) -> None:
    model.model.layers[1].mlp = model.model.layers[0].mlp


def _hook(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda _, __, out: out * 2)


def _hold_a_tensor(model: Any) -> None:
    scale = torch.tensor([2.0])
    model.lm_head.forward = MethodType(lambda self, hidden: scale * (hidden @ self.weight.T), model.lm_head)


@pytest.mark.parametrize(
    "change", [_set_config, _set_attribute, _tie, nn.Module.double, _hook, _hold_a_tensor]
)
def test_a_changed_model_differs(change: Callable[[Any], Any]) -> None:
    changed = llama()
    change(changed)
    assert identity(changed) not in (None, identity(llama()))


def test_a_replaced_method_differs_by_what_it_took() -> None:
    def scaled(scale: Any) -> nn.Module:
        model: Any = llama()
        forward = model.lm_head.forward

        @functools.wraps(forward)
        def multiplied(hidden: torch.Tensor) -> torch.Tensor:
            return forward(hidden) * scale

        model.lm_head.forward = multiplied
        return model

    scales: list[Any] = [2.0, 3.0, torch.tensor(2.0), torch.tensor(3.0)]
    assert len({identity(scaled(scale)) for scale in scales} - {None}) == len(scales)
    assert identity(scaled(torch.tensor(2.0))) == identity(scaled(torch.tensor(2.0)))


def test_replaced_functions_and_methods_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    before = identity(llama())
    with monkeypatch.context() as patch:
        patch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin, **_: (q, k))
        assert identity(llama()) not in (None, before)
    with monkeypatch.context() as patch:
        patch.setattr(modeling_llama.LlamaMLP, "forward", lambda self, hidden: self.up_proj(hidden)[..., :32])
        assert identity(llama()) not in (None, before)
    assert identity(llama()) == before


def test_which_layer_has_which_window_is_told() -> None:
    narrow, wide = within(24), within(40)
    orders = [(narrow, wide, narrow), (narrow, wide, wide), (wide, wide, wide), (causal,) * 3]
    assert len({identity(Decoder(order).eval()) for order in orders} - {None}) == len(orders)


def _within_at_most(window: int) -> nn.Module:
    def mask_of(positions: torch.Tensor) -> torch.Tensor:
        distance = positions[:, None, :, None] - positions[:, None, None, :]
        return (distance >= 0) & (distance < min(positions.shape[1], window))

    return decoder(masked(mask_of))


def test_sizes_that_grow_with_the_text_differ() -> None:
    assert len({identity(_within_at_most(window)) for window in (24, 40, 60)} - {None}) == 3


class Remembers(Decoder):
    """Keeps what it computed, in every place."""

    def __init__(self) -> None:
        super().__init__()
        self.by_length: dict[int, torch.Tensor] = {}
        self.read: list[Any] = [[]]

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        self.logits = super().forward(input_ids, position_ids)
        self.by_length[input_ids.shape[1]] = self.logits
        self.read[0].append(self.logits)
        self.register_buffer("last", self.logits)
        return self.logits


def test_nothing_is_left_in_the_model() -> None:
    model, fresh = Remembers().eval(), Remembers().eval()
    assert identity(model) is not None
    assert vars(model).keys() == vars(fresh).keys()
    assert (model.by_length, model.read, [*model.buffers()]) == ({}, [[]], [])


class Counts(Decoder):
    """Another model in every call, by a number and by a buffer in another's place."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("same_scale", self.scale)

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.scale = self.scale * self.calls
        return super().forward(input_ids, position_ids) * self.scale


def test_a_text_leaves_nothing_for_the_next() -> None:
    without_numbers = fakes()
    assert without_numbers is not None
    reader = module._Reader(LogitsWrapper(Counts().eval()), without_numbers)
    given = example_inputs(torch.device("cpu"), None)
    assert reader.read(given).lines == reader.read(given).lines


class MadeOnce(Decoder):
    """Makes a table the first time that it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: dict[str, torch.Tensor] = {}

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        if "scale" not in self.tables:
            self.tables["scale"] = torch.arange(1.0, 54.0)
        return super().forward(input_ids, position_ids) * self.tables["scale"]


def test_what_is_made_once_is_made_of_numbers() -> None:
    torch.manual_seed(0)
    model, ids = MadeOnce().eval(), text(30)
    compiled = qfpass.compile(model, ratio=1, context_length=CONTEXT)
    assert model.tables == {}
    expected = decoder()(ids, places(ids)) * torch.arange(1.0, 54.0)
    torch.testing.assert_close(compiled(ids), expected, atol=1e-4, rtol=1e-4)


def _need_numbers(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda _, __, out: out * out.sum().item())


def _hold_large_constants(model: Any) -> None:
    large = torch.ones(1 << 21)
    model.lm_head.register_forward_hook(lambda _, __, out: out * large.sum())


def _fail(model: Any) -> None:
    def fail(*_: Any) -> None:
        raise threading.ThreadError("its own")

    model.lm_head.register_forward_hook(fail)


@pytest.mark.parametrize("change", [_need_numbers, _hold_large_constants, _fail])
def test_what_does_not_run_without_numbers_has_no_identity(change: Callable[[Any], None]) -> None:
    model = llama()
    change(model)
    assert identity(model) is None


def test_a_digest_is_the_same_without_layers_noted() -> None:
    model = FAMILIES["llama"]()
    with_layers, without = (
        module.digest_computation(model, None, CONTEXT, layers=layers) for layers in (True, False)
    )
    assert with_layers is not None and without is not None
    assert with_layers.digest == without.digest
    assert without.texts[0].layers == {}
