"""The compiled object is what it says: hooks, settings, forward of its own, outputs like the original's."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from bounded import compiled, llama
from decoders import decoder, text
from torch import nn

import qfpass
from qfpass.errors import CaptureError, InputError, QFPassError

WHOLE = {"ratio": 1, "backend": "eager", "verify": False}


def test_a_forward_of_the_instance_is_not_the_compiled_models() -> None:
    """As accelerate's hooks and `model.forward = torch.compile(model.forward)` set one."""
    model = llama()
    own = model.forward
    model.forward = lambda *args, **kwargs: own(*args, **kwargs)
    model.generate = "nothing"
    bounded = compiled(model)
    assert isinstance(bounded(text(20)).cache, qfpass.Session)
    assert bounded.generate(text(5), max_new_tokens=3, do_sample=False).shape == (1, 8)
    assert model.generate == "nothing"


def test_a_module_that_compiles_itself_is_compiled_anew() -> None:
    model = llama()
    model.compile(backend="eager")
    assert isinstance(compiled(model)(text(20)).cache, qfpass.Session)


def _double(module: nn.Module, args: Any, output: Any) -> Any:
    output.logits = output.logits * 2
    return output


def _shift(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return ((args[0] + 1) % 50, *args[1:]), kwargs


def test_hooks_of_the_model_run_once() -> None:
    model = llama()
    model.register_forward_hook(_double)
    model.register_forward_pre_hook(_shift, with_kwargs=True)
    with torch.no_grad():
        expected = model(text(20)).logits
    torch.testing.assert_close(qfpass.compile(model, **WHOLE)(text(20)).logits, expected)


def test_hooks_put_on_one_run_on_that_one_alone() -> None:
    model = llama()
    bounded = qfpass.compile(model, **WHOLE)
    ran = list[str]()
    bounded.register_forward_hook(lambda *_: ran.append("compiled"))
    model.register_forward_pre_hook(lambda *_: ran.append("original"))
    bounded(text(5))
    assert ran == ["compiled"]
    model(text(5))
    assert ran == ["compiled", "original"]


def test_settings_set_on_one_stay_its_own() -> None:
    model = llama()
    bounded = qfpass.compile(model, **WHOLE)
    bounded.generation_config.eos_token_id = 7
    bounded.config.vocab_size = 3
    bounded.note = "mine"
    assert model.generation_config.eos_token_id != 7
    assert model.config.vocab_size != 3
    assert not hasattr(model, "note")


def test_return_dict_is_heeded() -> None:
    model = llama()
    bounded = qfpass.compile(model, **WHOLE)
    wanted = bounded(text(6)).logits
    session = bounded.session()
    logits, cache = bounded(text(6), cache=session, return_dict=False)
    assert cache is session
    torch.testing.assert_close(logits, wanted)
    (logits,) = bounded(text(6), return_dict=False, use_cache=False)
    torch.testing.assert_close(logits, wanted)
    bounded.config.return_dict = False
    assert isinstance(bounded(text(6)), tuple)


class Named(NamedTuple):
    logits: torch.Tensor
    loss: torch.Tensor | None


class Returning(nn.Module):
    """A plain decoder that returns what `form` makes of its logits."""

    def __init__(self, form: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.form = decoder(), form

    def forward(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> Any:
        return self.form(self.inner(input_ids, position_ids=position_ids))


FORMS: dict[str, Callable[[torch.Tensor], Any]] = {
    "bare": lambda logits: logits,
    "pair": lambda logits: (logits, None),
    "named": lambda logits: Named(logits, None),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_plain_module_returns_what_its_original_returns(form: Callable[[torch.Tensor], Any]) -> None:
    model = Returning(form).eval()
    ids = text(8)
    with torch.no_grad():
        wanted = model(ids, torch.arange(8)[None])
    out = compiled(model, budget=None, ratio=1)(ids)
    assert type(out) is type(wanted)
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-4)


def test_a_tuple_with_more_than_logits_is_refused() -> None:
    with pytest.raises(CaptureError, match="returns its logits with Tensor"):
        compiled(Returning(lambda logits: (logits, logits.sum())).eval())


@pytest.mark.parametrize(
    "away", [copy.copy, copy.deepcopy, pickle.dumps, lambda m: torch.save(m, io.BytesIO())]
)
@pytest.mark.parametrize("original", [llama(), decoder()], ids=["llama", "plain"])
def test_copies_are_refused_by_name(original: nn.Module, away: Callable[[nn.Module], object]) -> None:
    with pytest.raises(QFPassError, match=r"can't be copied or pickled.*session\.save"):
        away(compiled(original))


def test_torch_compile_around_it_runs_it_as_it_is() -> None:
    bounded = compiled(llama())
    around = torch.compile(bounded, backend="eager")
    session = bounded.session()
    torch.testing.assert_close(around(text(20)).logits, bounded(text(20)).logits)
    around(text(20), cache=session)
    assert session.tokens_seen == 20


def test_what_torch_compile_wraps_is_compiled() -> None:
    model = llama()
    bounded = compiled(torch.compile(model, backend="eager"))
    assert bounded.qfpass_original is model
    assert bounded.generate(text(5), max_new_tokens=3, do_sample=False).shape == (1, 8)


class Wrapper(nn.Module):
    """What PEFT's PeftModel shows of itself."""

    def __init__(self, model: nn.Module, is_prompt_learning: bool) -> None:
        super().__init__()
        self.inner = model
        self.peft_config = {"tuned": type("Adapter", (), {"is_prompt_learning": is_prompt_learning})}

    def get_base_model(self) -> nn.Module:
        return self.inner


def test_what_peft_wraps_is_compiled_unless_it_changes_the_text() -> None:
    model = llama()
    assert compiled(Wrapper(model, False).eval()).qfpass_original is model
    with pytest.raises(CaptureError, match="'tuned' puts learned tokens before the text"):
        compiled(Wrapper(model, True).eval())


def test_a_part_of_the_compiled_model_refuses_to_run_unbounded() -> None:
    model = llama()
    bounded = compiled(model)
    with pytest.raises(InputError, match="call it, not a part of it"):
        bounded.model(text(5))
    assert isinstance(bounded.model, type(model.model))
    assert bounded.model.embed_tokens is model.model.embed_tokens
    assert bounded.state_dict().keys() == model.state_dict().keys()
    model.model(text(5))
