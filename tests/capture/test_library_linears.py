"""Models quantised by libraries: equal to their own numbers in plain torch, their layers compiled once."""

import threading
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from bounded import run_plainly
from often import often
from quantised_stand_ins import EightBits, FourBits, Opaque
from quantisers import FORMATS, compressed, tiny_llama, with_linears
from tiny import FAMILIES
from torch import nn

import qfpass
from qfpass.capture.library_linears import library_of, plain_linear
from qfpass.capture.quantised_linears import plain_linears
from qfpass.errors import CaptureError, PackageError
from qfpass.kernels.cpu.step_linear.op import few_token_linears
from qfpass.regions import step_linears

TOKENS, CONTEXT = 24, 64
IDS = torch.randint(1, 61, (1, TOKENS), generator=torch.Generator().manual_seed(0))
# No ties in the "random" score: rounding never decides what is evicted.
BOUNDED: dict[str, Any] = {"budget": 16, "context_length": CONTEXT, "score": "random"}


def in_parts(compiled: Any) -> torch.Tensor:
    """The logits of IDS, read in calls of several sizes."""
    session, cuts = compiled.session(), (0, 9, 10, 11, TOKENS)
    parts = [compiled(IDS[:, a:b], past_key_values=session).logits for a, b in pairwise(cuts)]
    return torch.cat(parts, dim=1)


@torch.no_grad()
def own_logits(model: Any) -> torch.Tensor:
    return model(IDS, use_cache=False).logits


def check(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-3, rtol=1e-3)


def what_it_holds(model: nn.Module) -> list[object]:
    """Each module's own forward, if it has one, and its parameters and buffers by name."""
    return [
        (
            vars(module).get("forward"),
            {
                name: id(tensor)
                for named in (module._parameters, module._buffers)
                for name, tensor in named.items()
            },
        )
        for module in model.modules()
    ]


@pytest.mark.parametrize("name", FORMATS)
def test_equal_to_its_numbers_with_layers_of_one_kind(name: str, tmp_path: Path) -> None:
    model, plainer = FORMATS[name](tmp_path)
    expected = own_logits(plainer)
    held = what_it_holds(model)
    compiled = qfpass.compile(model, context_length=CONTEXT, backend="eager")
    check(in_parts(compiled), expected)
    decoder = compiled.qfpass_decoder
    assert decoder.graphs.kinds == 1 and decoder.graphs.head is not None
    assert "trace_layers_once" not in decoder.unused_optimisations
    assert what_it_holds(model) == held


@pytest.mark.parametrize("name", often(list(FORMATS)[:1], FORMATS))
def test_tokens_past_full_stores_are_those_of_the_plain_model(name: str, tmp_path: Path) -> None:
    """Compiled by Inductor, layer by layer."""
    model, plainer = FORMATS[name](tmp_path)
    reference = qfpass.compile(plainer, backend="eager", **BOUNDED)
    compiled = qfpass.compile(model, **BOUNDED)
    check(in_parts(compiled), in_parts(reference))
    asked: dict[str, Any] = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(compiled.generate(IDS, **asked), reference.generate(IDS, **asked))
    assert compiled.qfpass_decoder.graphs.why_not_piecewise is None


@pytest.mark.parametrize("dtype", often([torch.bfloat16], [torch.bfloat16, torch.float16]))
@pytest.mark.parametrize("kind", [EightBits, FourBits])
def test_half_precision_is_proven(dtype: torch.dtype, kind: Any) -> None:
    model = with_linears(tiny_llama(), kind).to(dtype)
    for module in model.modules():
        if isinstance(module, (EightBits, FourBits)):
            full = module.dequantised
            module.dequantised = lambda full=full: full().to(dtype)  # type: ignore[method-assign]
    compiled = qfpass.compile(model, context_length=CONTEXT, backend="eager")
    expected = own_logits(model)
    assert (in_parts(compiled) - expected).norm() < 0.03 * expected.norm()


def test_new_weights_are_followed() -> None:
    model = with_linears(tiny_llama(), EightBits)
    compiled = qfpass.compile(model, context_length=CONTEXT, backend="eager")
    linear = model.model.layers[1].mlp.up_proj
    linear.state.SCB.mul_(2)  # the same tensor
    check(in_parts(compiled), own_logits(model))
    linear.state.SCB = linear.state.SCB / 3  # another one, in an object that is no module
    check(in_parts(compiled), own_logits(model))
    other = with_linears(another_llama(), EightBits)
    model.model.layers[1].mlp.up_proj = other.model.layers[1].mlp.up_proj
    check(in_parts(compiled), own_logits(model))


def test_replaced_codes_are_followed() -> None:
    model = with_linears(tiny_llama(), FourBits)
    compiled = qfpass.compile(model, context_length=CONTEXT, backend="eager")
    before, linear = own_logits(model), model.model.layers[1].mlp.up_proj
    linear.weight.quant_state.code = -linear.weight.quant_state.code
    linear.numbers = -linear.numbers
    assert not torch.allclose(own_logits(model), before, atol=1e-2)
    check(in_parts(compiled), own_logits(model))


def test_steps_read_eight_bits_as_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loops get the codes, and no weight that was widened from them."""
    model, read = with_linears(tiny_llama(), EightBits), list[torch.dtype]()
    compiled = run_plainly(qfpass.compile(model, **BOUNDED))

    def products(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
        read.extend(weight.dtype for weight in weights)
        return few_token_linears(x, weights)

    monkeypatch.setattr(step_linears, "few_token_linears", products)
    compiled(IDS[:, :1])
    assert Counter(read) == {torch.int8: 7 * 3, torch.float32: 1}  # the head wasn't quantised


@pytest.mark.parametrize("kind", [EightBits, FourBits])
def test_biases_are_added(kind: Any) -> None:
    model = with_linears(FAMILIES["qwen2"](), kind)
    assert model.model.layers[0].self_attn.q_proj.bias.abs().max() > 0
    check(in_parts(qfpass.compile(model, context_length=CONTEXT, backend="eager")), own_logits(model))


def test_filters_of_a_quantised_model_are_its_own() -> None:
    model = with_linears(tiny_llama(), FourBits)
    filters = qfpass.calibrate(model, [IDS], sequence_length=IDS.shape[1], progress=False)
    qfpass.compile(model, filters=filters, budget=16, context_length=CONTEXT, backend="eager", verify=False)


def test_another_thread_leaves_the_model_as_it_was() -> None:
    """Both replace the linears; the first to come is the first to go."""
    model = with_linears(tiny_llama(), EightBits)
    held = what_it_holds(model)
    inside, both_inside, gone = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with plain_linears(model):
            inside.set()
            both_inside.wait(0.5)  # they never are
        gone.set()

    def second() -> None:
        inside.wait()
        with plain_linears(model):
            both_inside.set()
            gone.wait(0.5)

    threads = [threading.Thread(target=each) for each in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert what_it_holds(model) == held


def another_llama() -> Any:
    return FAMILIES["llama"](layers=3, heads=4, kv_heads=2, head_dim=16, seed=1)


def test_hidden_states_are_those_of_the_plain_model(tmp_path: Path) -> None:
    model, plainer = FORMATS["a stand-in for four bits"](tmp_path)
    compiled: Any = qfpass.compile(model, context_length=CONTEXT, backend="eager")
    with torch.no_grad():
        expected = plainer(IDS, output_hidden_states=True).hidden_states
    actual = compiled(IDS, output_hidden_states=True).hidden_states
    for one, other in zip(actual, expected, strict=True):
        check(one, other)


def test_a_linear_that_computes_something_else_is_refused_by_name() -> None:
    model = with_linears(tiny_llama(), EightBits)
    model.model.layers[1].mlp.up_proj.forward = lambda x: (
        2 * EightBits.forward(model.model.layers[1].mlp.up_proj, x)
    )
    with pytest.raises(CaptureError, match=r"a linear of bitsandbytes, model\.layers\.1\.mlp\.up_proj, that"):
        qfpass.compile(model, context_length=CONTEXT, backend="eager")
    assert "weight" in dict(model.model.layers[1].mlp.up_proj.named_parameters())


def test_what_cannot_be_traced_is_refused_by_the_librarys_name() -> None:
    def opaque(linear: Any) -> nn.Module:
        other = Opaque(linear.in_features, linear.out_features, bias=False)
        other.weight = linear.weight
        return other

    model = with_linears(tiny_llama(), opaque)
    with pytest.raises(CaptureError, match=r"is quantised by VPTQ, and torch\.export can't trace it so"):
        qfpass.compile(model, context_length=CONTEXT, backend="eager")


def test_a_library_is_told_by_the_config_if_nothing_else_tells() -> None:
    model = tiny_llama()
    assert library_of(model) is None
    model.config.quantization_config = {"quant_method": "higgs"}
    assert library_of(model) == "higgs"


def test_what_was_not_quantised_yet_is_left_to_the_library() -> None:
    linear = EightBits(nn.Linear(32, 32))
    assert plain_linear(linear) is not None
    linear.state.has_fp16_weights = True
    assert plain_linear(linear) is None


def test_no_package_is_made(tmp_path: Path) -> None:
    model = with_linears(tiny_llama(), FourBits)
    compiled: Any = qfpass.compile(model, context_length=CONTEXT, backend="eager")
    with pytest.raises(PackageError, match="quantised weights"):
        compiled.export(tmp_path / "package")


def test_weights_packed_by_compressed_tensors_are_refused(tmp_path: Path) -> None:
    model = compressed(tmp_path)
    for _ in range(2):  # before and after it has unpacked them
        with pytest.raises(CaptureError, match=r"CompressedTensorsConfig\(dequantize=True\)"):
            qfpass.compile(model, context_length=CONTEXT, backend="eager")
        own_logits(model)
