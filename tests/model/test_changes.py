"""The original changed after compile: a change in numbers is followed, any other by a compile of its own."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bounded import llama
from often import often
from torch import nn

import qfpass
from qfpass.errors import CaptureError, SessionError

COMPILING = "the model has changed since it was compiled"


class Adapter(nn.Module):
    """What an adapter library puts in the place of a linear layer."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.is_on, self.scale = base, True, {"first": 1.0}
        self.delta = nn.Parameter(torch.randn(base.out_features, base.in_features) * 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out]."""
        if not self.is_on:
            return self.base(x)
        return self.base(x) + self.scale["first"] * (x @ self.delta.T)


def adapted() -> tuple[Any, Adapter]:
    torch.manual_seed(0)
    model: Any = llama()
    attention = model.model.layers[0].self_attn
    attention.q_proj = adapter = Adapter(attention.q_proj)
    return model.eval(), adapter


def text(tokens: int = 40) -> torch.Tensor:
    return torch.randint(1, 50, (1, tokens), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def check_follows(model: Any, compiled: Any) -> None:
    expected = model(text(), use_cache=False).logits
    torch.testing.assert_close(compiled(text()).logits, expected, atol=1e-4, rtol=1e-4)


def compile_all(model: Any) -> Any:
    return qfpass.compile(model, ratio=1, context_length=64, backend="eager")


def switch_off(model: Any, adapter: Adapter) -> None:
    adapter.is_on = False


def switch_off_unseen(model: Any, adapter: Adapter) -> None:
    vars(adapter).update(is_on=False)


def scale(model: Any, adapter: Adapter) -> None:
    adapter.scale["first"] = 0.25


def merge(model: Any, adapter: Adapter) -> None:
    with torch.no_grad():
        adapter.base.weight += adapter.delta
    adapter.is_on = False


def unload(model: Any, adapter: Adapter) -> None:
    model.model.layers[0].self_attn.q_proj = adapter.base


def load_others(model: Any, adapter: Adapter) -> None:
    others = {name: value + 0.1 for name, value in model.state_dict().items()}
    model.load_state_dict(others, assign=True)


def set_parameter(model: Any, adapter: Adapter) -> None:
    model.model.layers[1].self_attn.v_proj.weight = nn.Parameter(torch.randn(16, 32))


def replace_layer(model: Any, adapter: Adapter) -> None:
    model.model.layers[1] = copy.deepcopy(model.model.layers[0])


def resize(model: Any, adapter: Adapter) -> None:
    model.resize_token_embeddings(80, mean_resizing=False)


def hook(model: Any, adapter: Adapter) -> None:
    model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: output * 2)


def set_in_config(model: Any, adapter: Adapter) -> None:
    adapter.forward = lambda x: adapter.base(x) * getattr(model.config, "factor", 1)  # type: ignore[method-assign]
    model.config.factor = 2


def set_forward(model: Any, adapter: Adapter) -> None:
    adapter.forward = lambda x: adapter.base(x) * 1.5  # type: ignore[method-assign]


CHANGES = [
    switch_off, switch_off_unseen, scale, merge, unload, load_others, set_parameter, replace_layer, resize,
    hook, set_forward, set_in_config,
]  # fmt: skip


@pytest.mark.parametrize("change", often({switch_off, merge, replace_layer, hook, set_in_config}, CHANGES))
def test_a_change_is_followed(
    change: Callable[[Any, Adapter], None], caplog: pytest.LogCaptureFixture
) -> None:
    model, adapter = adapted()
    compiled = compile_all(model)
    check_follows(model, compiled)
    assert COMPILING not in caplog.text
    change(model, adapter)
    check_follows(model, compiled)
    assert COMPILING in caplog.text
    ids = text(9)
    expected = model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(compiled.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0), expected)


def test_each_of_two_adapters_is_compiled_once(caplog: pytest.LogCaptureFixture) -> None:
    model, adapter = adapted()
    compiled = compile_all(model)
    for is_on in (False, True, False, True):
        adapter.is_on = is_on
        check_follows(model, compiled)
    assert caplog.text.count(COMPILING) == 1


def test_new_numbers_need_no_compile(caplog: pytest.LogCaptureFixture) -> None:
    model, adapter = adapted()
    compiled = compile_all(model)
    with torch.no_grad():
        adapter.delta.mul_(2)
    model.load_state_dict({name: value * 1.1 for name, value in model.state_dict().items()})
    check_follows(model, compiled)
    assert COMPILING not in caplog.text


def test_what_no_logits_depend_on_needs_no_compile(caplog: pytest.LogCaptureFixture) -> None:
    model, adapter = adapted()
    compiled = compile_all(model)
    model.train()
    compiled(text())
    model.eval()
    adapter.note = "trained on essays"  # type: ignore[assignment]
    model.config.pad_token_id = 1
    check_follows(model, compiled)
    assert COMPILING not in caplog.text


def test_a_session_of_the_model_as_it_was_is_refused() -> None:
    model, adapter = adapted()
    compiled = compile_all(model)
    session = compiled.session()
    compiled(text(9), cache=session)
    adapter.is_on = False
    with pytest.raises(SessionError, match="made before the model was changed"):
        compiled(text(3), cache=session)
    adapter.is_on = True
    compiled(text(3), cache=session)
    assert session.tokens_seen == 12


def test_a_change_that_cannot_be_compiled_is_refused_until_it_is_taken_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, adapter = adapted()
    compiled = compile_all(model)
    forward = adapter.forward
    adapter.forward = lambda x: forward(x) if x.sum() > 0 else x * 2  # type: ignore[method-assign]
    for _ in range(2):
        with pytest.raises(CaptureError, match="branches on"):
            compiled(text())
    del adapter.forward
    check_follows(model, compiled)


def test_modules_of_others_are_followed_too(caplog: pytest.LogCaptureFixture) -> None:
    from decoders import decoder, places

    caplog.set_level(logging.WARNING)
    model = decoder()
    compiled: Any = qfpass.compile(model, ratio=1, context_length=64, backend="eager")
    model.layers[1].norm = nn.LayerNorm(24, eps=0.5)
    with torch.no_grad():
        torch.testing.assert_close(compiled(text()), model(text(), places(text())), atol=1e-4, rtol=1e-4)
    assert "layers.norm" not in caplog.text
    assert "layers.1.norm" in caplog.text
