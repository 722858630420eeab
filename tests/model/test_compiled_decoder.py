"""What compile returns: used like the model that went in, which is left as it was."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from bounded import CONTEXT, compiled, llama
from decoders import HEAD_DIM, KV_HEADS, decoder, text
from torch import nn
from transformers import LlamaForCausalLM, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

import qfpass
from qfpass.errors import ConfigError, FilterMismatchError, NoAttentionError
from qfpass.filters import QFilters


class Collected(BaseStreamer):
    """Keeps what is streamed."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.ids += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_a_streamer_gets_every_token() -> None:
    streamer = Collected()
    out = compiled(llama()).generate(text(5), max_new_tokens=30, do_sample=False, streamer=streamer)
    assert out.shape == (1, 35)
    assert streamer.ids == out[0].tolist()
    assert streamer.ended


class AfterTokens(StoppingCriteria):
    """Stops when the text has so many tokens."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        return torch.full(input_ids.shape[:1], input_ids.shape[1] >= self.tokens)


def test_a_class_that_passes_the_whole_text_in_every_step_generates() -> None:
    class Old(LlamaForCausalLM):
        def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **kwargs: Any) -> dict[str, Any]:
            return {"input_ids": input_ids, **kwargs}

    model = llama()
    model.__class__ = Old
    ids = text(9)
    ours = compiled(model, budget=CONTEXT).generate(ids, max_new_tokens=6, do_sample=False)
    theirs = llama().generate(ids, max_new_tokens=6, do_sample=False)
    torch.testing.assert_close(ours, theirs, atol=0, rtol=0)


def test_stopping_criteria_stop_it_where_the_original_stops() -> None:
    original, ids = llama(), text(5)
    stops = StoppingCriteriaList([AfterTokens(12)])
    made = [
        each.generate(ids, max_new_tokens=30, do_sample=False, stopping_criteria=stops).tolist()
        for each in (original, compiled(original))
    ]
    assert len(made[1][0]) == 12
    assert made[1] == made[0]


def test_logits_are_computed_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = compiled(decoder())
    head, asked = model.qfpass_decoder.graphs.head, list[int]()

    def counted(hidden: torch.Tensor) -> torch.Tensor:
        asked.append(hidden.shape[1])
        return head(hidden)

    monkeypatch.setattr(model.qfpass_decoder.graphs, "head", counted)
    model(text(20), logits_to_keep=3)
    assert asked == [3]


def test_options_reach_torch_compile() -> None:
    seen: list[dict[str, Any]] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any], **kwargs: Any) -> Any:
        seen.append(kwargs)
        return graph.forward

    model = qfpass.compile(decoder(), context_length=CONTEXT, backend=backend, options={"level": 3})
    model(text(6))
    assert seen
    assert all(kwargs == {"options": {"level": 3}} for kwargs in seen)


def test_filters_from_a_folder_are_the_filters(tmp_path: Path) -> None:
    torch.manual_seed(1)
    filters = QFilters(tuple(torch.randn(KV_HEADS, HEAD_DIM) for _ in range(2)))
    filters.save(tmp_path)
    ids, settings = text(40), {"score": "published"}
    made = [compiled(decoder(), filters=f, **settings)(ids) for f in (filters, tmp_path, str(tmp_path))]
    assert torch.equal(made[1], made[0])
    assert torch.equal(made[2], made[0])
    assert not torch.equal(made[0], compiled(decoder())(ids))


def test_training_mode_is_refused() -> None:
    original = decoder()
    model = compiled(original)
    with pytest.raises(qfpass.QFPassError, match="can't be trained"):
        model.train()
    assert not any(m.training for m in (*original.modules(), *model.modules()))
    assert model.eval() is model


def test_moving_or_casting_is_refused() -> None:
    original = llama()
    model = compiled(original)
    for change in (lambda: model.half(), lambda: model.to(torch.bfloat16), lambda: model.to("meta")):
        with pytest.raises(qfpass.QFPassError, match=r"stays on cpu in torch\.float32"):
            change()
    assert {p.dtype for p in original.parameters()} == {torch.float32}
    assert model.to("cpu") is model


class Snapshot:
    """All of a model that compile must leave alone."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model, self.kind = model, type(model)
        self.modes = [m.training for m in model.modules()]
        self.kinds = [type(m) for m in model.modules()]
        self.attributes = set(vars(model))
        self.implementation = model.config._attn_implementation
        self.state = {n: (t.data_ptr(), t.clone()) for n, t in model.state_dict().items()}
        self.logits = self._run()

    @torch.no_grad()
    def _run(self) -> torch.Tensor:
        return self.model(text(9)).logits

    def check(self) -> None:
        """Compare with the model as it is now."""
        model = self.model
        assert type(model) is self.kind
        assert [m.training for m in model.modules()] == self.modes
        assert [type(m) for m in model.modules()] == self.kinds
        assert set(vars(model)) == self.attributes
        assert model.config._attn_implementation == self.implementation
        assert model.state_dict().keys() == self.state.keys()
        for name, tensor in model.state_dict().items():
            pointer, value = self.state[name]
            assert tensor.data_ptr() == pointer
            assert torch.equal(tensor, value)
        assert torch.equal(self._run(), self.logits)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_the_model_is_left_as_it_was(implementation: str) -> None:
    original = llama(implementation)
    before = Snapshot(original)
    model = compiled(original)
    before.check()
    model(text(20))
    model.generate(text(5), max_new_tokens=3, do_sample=False)
    before.check()
    shared = {p.data_ptr() for p in original.parameters()}
    assert {p.data_ptr() for p in model.parameters()} == shared


@pytest.mark.parametrize("original", [llama(), decoder()], ids=["llama", "plain"])
def test_a_compiled_model_stands_for_its_original(original: nn.Module) -> None:
    model = compiled(original, budget=CONTEXT)
    again = compiled(model)
    assert qfpass.report(again).sites[0].slots == 16
    assert again.qfpass_original is original
    wanted, actual = (qfpass.calibrate(m, [text(30)[0]], progress=False) for m in (original, model))
    torch.testing.assert_close(actual.filters, wanted.filters)


def test_the_model_is_left_as_it_was_after_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    original = llama("eager")
    before = Snapshot(original)
    for settings in ({"budget": 4}, {"skip_layers": (7,)}, {"context_length": 1}):
        with pytest.raises(ConfigError):
            compiled(original, **settings)
        before.check()
    filters = QFilters((torch.ones(2, 8),))
    with pytest.raises(FilterMismatchError):
        compiled(original, score="published", filters=filters)
    before.check()

    def nothing(*args: object) -> None:
        raise NoAttentionError("none")

    monkeypatch.setattr(import_module("qfpass.proof.prove"), "find_attentions", nothing)
    with pytest.raises(NoAttentionError):
        compiled(original)
    before.check()
