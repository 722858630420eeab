"""Adapters switched on a compiled model: each is compiled once and has sessions and pools of its own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bounded import llama
from torch import nn

import qfpass
from qfpass.errors import InputError, SessionError

COMPILING = "the model has changed since it was compiled"
NAMES = ("first", "second")


class Adapted(nn.Module):
    """A linear with an adapter of low rank for each name, one of which is active."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.active = base, NAMES[0]
        down, up = (4, base.in_features), (base.out_features, 4)
        self.down = nn.ParameterDict({name: torch.randn(down) * 0.3 for name in NAMES})
        self.up = nn.ParameterDict({name: torch.randn(up) * 0.3 for name in NAMES})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out]."""
        return self.base(x) + x @ self.down[self.active].T @ self.up[self.active].T


def by_hand() -> tuple[Any, Callable[[str], None]]:
    """A model with adapters, and what switches them."""
    model: Any = llama()
    torch.manual_seed(1)
    for layer in model.model.layers:
        layer.self_attn.q_proj = Adapted(layer.self_attn.q_proj)
    adapters = [module for module in model.modules() if isinstance(module, Adapted)]

    def switch(name: str) -> None:
        for adapter in adapters:
            adapter.active = name

    return model.eval(), switch


def lora_config() -> Any:
    peft = pytest.importorskip("peft", reason="needs peft: pip install peft")
    return peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False)


def of_peft() -> tuple[Any, Callable[[str], None]]:
    """PEFT's wrapper around the model."""
    from peft import get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(llama(), lora_config(), adapter_name=NAMES[0])
    model.add_adapter(NAMES[1], lora_config())
    return model.eval(), model.set_adapter


def in_place() -> tuple[Any, Callable[[str], None]]:
    """Adapters put into the model itself, as transformers' load_adapter does."""
    from peft import inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    model = llama()
    torch.manual_seed(1)
    for name in NAMES:
        inject_adapter_in_model(lora_config(), model, adapter_name=name)
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]

    def switch(name: str) -> None:
        for layer in layers:
            layer.set_adapter(name)

    switch(NAMES[0])
    return model.eval(), switch


@pytest.fixture(params=[by_hand, of_peft, in_place])
def adapted(request: pytest.FixtureRequest) -> tuple[Any, Callable[[str], None]]:
    if request.param is not by_hand:
        lora_config()
    made: tuple[Any, Callable[[str], None]] = request.param()
    return made


def text(tokens: int = 20, seed: int = 0) -> torch.Tensor:
    return torch.randint(1, 50, (1, tokens), generator=torch.Generator().manual_seed(seed))


def compile_bounded(model: Any) -> Any:
    return qfpass.compile(model, budget=16, chunk=8, score="recency", context_length=48, backend="eager")


@torch.no_grad()
def test_a_switched_adapter_is_computed(
    adapted: tuple[Any, Callable[[str], None]], caplog: pytest.LogCaptureFixture
) -> None:
    model, switch = adapted
    compiled = qfpass.compile(model, ratio=1, context_length=48, backend="eager")
    seen = []
    for name in (*NAMES, *NAMES):
        switch(name)
        seen.append(model(text(), use_cache=False).logits)
        torch.testing.assert_close(compiled(text()).logits, seen[-1], atol=1e-4, rtol=1e-4)
    assert (seen[0] - seen[1]).abs().max() > 0.01
    assert caplog.text.count(COMPILING) == 1


def test_each_adapter_has_a_pool_of_its_own(adapted: tuple[Any, Callable[[str], None]]) -> None:
    """Rows of several adapters answer in turn, past full stores, each as it would alone."""
    model, switch = adapted
    compiled = compile_bounded(model)
    pools, alone = dict[str, Any](), dict[str, Any]()
    for i, name in enumerate(NAMES):
        switch(name)
        pools[name], alone[name] = compiled.pool(2), [compiled.session() for _ in range(2)]
        for row, session in enumerate(alone[name]):
            ids = text(20, seed=2 * i + row)
            expected = compiled(ids, past_key_values=session).logits[0, -1:]
            torch.testing.assert_close(pools[name].read(pools[name].join(), ids), expected)
    for step in range(6):
        name = NAMES[step % 2]
        switch(name)
        logits = pools[name].step({0: step, 1: step + 1})
        for row, session in enumerate(alone[name]):
            expected = compiled(torch.tensor([[step + row]]), past_key_values=session).logits[0]
            torch.testing.assert_close(logits[row : row + 1], expected, atol=1e-5, rtol=1e-5)


def test_a_pool_of_another_adapter_is_refused(adapted: tuple[Any, Callable[[str], None]]) -> None:
    model, switch = adapted
    compiled = compile_bounded(model)
    pool = compiled.pool(2)
    row = pool.join()
    pool.read(row, text())
    switch(NAMES[1])
    for call in (lambda: pool.step({row: 1}), lambda: pool.read(row, [1]), pool.join):
        with pytest.raises(SessionError, match="make another pool, or change the model back"):
            call()
    switch(NAMES[0])
    pool.step({row: 1})
    assert pool.tokens_seen(row) == 21


def test_an_adapter_for_each_row_is_refused(adapted: tuple[Any, Callable[[str], None]]) -> None:
    compiled, session = compile_bounded(adapted[0]), None
    session = compiled.session()
    ids = text().expand(2, -1)
    with pytest.raises(InputError, match="keep a session or a pool for each adapter"):
        compiled(ids, past_key_values=session, adapter_names=list(NAMES))
    with pytest.raises(InputError, match="keep a session or a pool for each adapter"):
        compiled.generate(ids, past_key_values=session, adapter_names=list(NAMES), max_new_tokens=2)
    assert session.tokens_seen == 0


@torch.no_grad()
def test_peft_may_merge_switch_off_and_delete() -> None:
    lora_config()
    model, _ = of_peft()
    compiled = qfpass.compile(model, ratio=1, context_length=48, backend="eager")

    def check() -> None:
        expected = model(text(), use_cache=False).logits
        torch.testing.assert_close(compiled(text()).logits, expected, atol=1e-4, rtol=1e-4)

    check()
    with model.disable_adapter():
        check()
    model.merge_adapter()
    check()
    model.unmerge_adapter()
    check()
    model.delete_adapter(NAMES[1])
    check()
    for name, weight in model.named_parameters():
        if "lora_A" in name:
            weight.mul_(2)
    check()
