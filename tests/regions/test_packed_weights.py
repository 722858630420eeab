"""Steps read quantised weights in their own bits and compute what the dequantised weights do."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bounded import run_plainly
from test_families import close, text
from tiny import FAMILIES
from torch import fx, nn

import qfpass
from qfpass.errors import QFPassError
from qfpass.lowering.weight_guard import PackedWeights
from qfpass.regions.group_codes import group_codes
from qfpass.regions.outline import Outlined
from qfpass.regions.packed_weights import Known, pack_weights
from qfpass.regions.step_linears import linears, stream_weights

quantization = pytest.importorskip("torchao.quantization", reason="needs torchao: pip install torchao")

SETTINGS: dict[str, Any] = {"budget": 32, "context_length": 64, "score": "recency"}
SIZES: dict[str, Any] = {"heads": 4, "kv_heads": 2, "head_dim": 16}  # whole groups of 32


def config(bits: int = 4, group: int = 32, symmetric: bool = True) -> Any:
    mapping = quantization.MappingType.SYMMETRIC if symmetric else quantization.MappingType.ASYMMETRIC
    return quantization.IntxWeightOnlyConfig(
        getattr(torch, f"int{bits}"), granularity=quantization.PerGroup(group), mapping_type=mapping
    )


def weight(rows: int, dtype: torch.dtype = torch.float32, **form: Any) -> Any:
    linear = nn.Linear(96, rows, bias=False, dtype=dtype)
    quantization.quantize_(linear, config(**form))
    return linear.weight


def products_with(*weights: Any) -> tuple[fx.GraphModule, Outlined]:
    """The products of one input with torchao's weights, and what packing made of them."""
    root, graph = nn.Module(), fx.Graph()
    x, outs = graph.placeholder("x"), []
    for i, weight in enumerate(weights):
        names = [f"{name}{i}" for name in ("qdata", "scale", "zero_point")]
        for name, part in zip(names, (weight.qdata, weight.scale, weight.zero_point), strict=True):
            root.register_buffer(name, part)
        codes, scale, zero = map(graph.get_attr, names)
        operands = (codes, list(weight.block_size), scale, zero, torch.int8, -8, 7)
        dequantise = torch.ops.torchao.dequantize_affine.default
        number = graph.call_function(dequantise, operands, {"output_dtype": weight.dtype})
        outs.append(graph.call_function(torch.ops.aten.linear.default, (x, number)))
    graph.output(tuple(outs))
    outlined = Outlined(fx.GraphModule(root, graph), None, kinds=1, regions=1)
    stream_weights(outlined)
    outlined = pack_weights(outlined, {})
    outlined.body.graph.lint()
    return outlined.body, outlined


FORMS: dict[str, dict[str, Any]] = {
    "int4": {},
    "int4 with zeros": {"symmetric": False},
    "int4, a group a row": {"group": 96},
    "int3": {"bits": 3},
    "int8": {"bits": 8},
    "int8 with zeros": {"bits": 8, "symmetric": False},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_steps_are_the_products(form: str, dtype: torch.dtype) -> None:
    """Codes of four bits are copied to half their bytes, others read as they lie."""
    held = weight(24, dtype, **FORMS[form])
    body, outlined = products_with(held)
    (copy,) = outlined.packed
    assert (copy.operands[0] is held.qdata) == ("int8" in form)
    assert (copy.operands[2] is None) == ("zeros" not in form)
    if "int8" not in form:
        assert copy.operands[0].nbytes == held.qdata.nbytes / 2 and copy.unread[0] is held.qdata
    for shape in ((3, 1), (1, 7)):  # steps and a chunk
        x = torch.randn(*shape, 96, generator=torch.Generator().manual_seed(0)).to(dtype)
        (out,) = body(x)
        tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-2, "rtol": 2e-2}
        torch.testing.assert_close(out, F.linear(x, held), **tolerance)


@torch.no_grad()
def test_in_bfloat16_numbers_are_not_rounded_before_they_are_multiplied() -> None:
    """So a product is nearer to that of codes and scales than the library's own."""
    held = weight(24, torch.bfloat16)
    x = torch.randn(1, 1, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    groups = held.qdata.double().unflatten(1, (-1, 32)) * held.scale.double()[..., None]
    exact = (x.double() @ groups.flatten(1).mT).bfloat16()
    (out,) = products_with(held)[0](x)
    torch.testing.assert_close(out, exact, atol=1e-5, rtol=2**-7)
    assert (out - exact).abs().sum() < (F.linear(x, held) - exact).abs().sum()


@torch.no_grad()
def test_linears_of_one_input_are_read_side_by_side() -> None:
    """Groups may be of several sizes; one that the loops don't take leaves all as they were."""
    x = torch.randn(2, 1, 96)
    for groups, is_packed in (((32, 96), True), ((32, 16), False)):
        weights = [weight(8 + i, group=group) for i, group in enumerate(groups)]
        body, outlined = products_with(*weights)
        (call,) = [node for node in body.graph.nodes if node.target is linears]
        assert len(call.args[1]) == 2 and bool(outlined.packed) == is_packed
        for out, each in zip(body(x), weights, strict=True):
            torch.testing.assert_close(out, F.linear(x, each), atol=1e-5, rtol=1e-5)


def test_other_ways_to_dequantise_are_left_alone() -> None:
    graph = fx.Graph()
    codes, scale = graph.placeholder("codes"), graph.placeholder("scale")
    dequantise = torch.ops.torchao.dequantize_affine.default
    for block in ([2, 32], [32]):  # a scale of several rows, a vector
        node = graph.call_function(dequantise, (codes, block, scale, None, torch.int8))
        assert group_codes(node) is None
    computed = graph.call_function(torch.ops.aten.neg.default, (scale,))
    assert group_codes(graph.call_function(dequantise, (codes, [1, 32], computed, None, torch.int8))) is None
    assert group_codes(computed) is None
    assert group_codes(graph.call_function(dequantise, (codes, [1, 32], scale, None, torch.int8)))


@torch.no_grad()
def test_graphs_of_one_model_read_the_same_copies() -> None:
    held, known = weight(8), Known()
    outlined = [products_with(held)[1] for _ in range(2)]
    first, second = (pack_weights(each, known).packed for each in outlined)
    assert first and first[0] is second[0]


def steps(model: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a chunk and of the steps that follow, in a session of their own."""
    session = model.session()
    first, *later = (model(each, past_key_values=session).logits for each in ids.split([5, 1, 1, 1], dim=1))
    return first, torch.cat(later, dim=1)


@torch.no_grad()
def test_a_models_steps_read_the_copies_which_follow_changes() -> None:
    """Several rows, biases; chunks read the weights themselves."""
    model, ids = FAMILIES["qwen2"](**SIZES), text(8, batch=3)
    quantization.quantize_(model, config())
    eager = qfpass.compile(model, backend="eager", verify=False, **SETTINGS)
    ours = run_plainly(qfpass.compile(model, verify=False, **SETTINGS))
    before = steps(ours, ids)
    for out, wanted in zip(before, steps(eager, ids), strict=True):
        close(out, wanted)

    copies, report = ours.qfpass_decoder.graphs.packed, qfpass.report(ours)
    assert len(copies) == 2 * 7 + 1
    numbers = sum(copy.held.codes.numel() for copy in copies)
    assert report.copied_nbytes == numbers + numbers / 32  # codes and zeros, which are all 0
    assert report.packed_nbytes == numbers / 2
    assert "MiB of weights as" in " ".join(str(report).split())

    copies[-1].operands[0].fill_(0x88)  # the head's codes, twice 0
    spoiled = steps(ours, ids)
    assert spoiled[1].abs().max() == 0 and torch.equal(spoiled[0], before[0])

    for held in (model.lm_head.weight, model.model.layers[1].mlp.down_proj.weight):
        held.qdata.copy_(held.qdata.neg().clamp(-8, 7))
    after = steps(ours, ids)
    assert (after[1] - before[1]).abs().max() > 0.1
    close(after[1], steps(eager, ids)[1])

    held.scale.mul_(2)  # which is read where it lies
    scaled = steps(ours, ids)
    assert (scaled[1] - after[1]).abs().max() > 0.1
    close(scaled[1], steps(eager, ids)[1])

    held.zero_point.fill_(1)
    with pytest.raises(QFPassError, match=r"quantised weight has changed.*compile the model again"):
        steps(ours, ids)


def test_zeros_are_watched_also_of_codes_that_are_read_as_they_lie() -> None:
    _, outlined = products_with(weight(24, bits=8))
    watched = PackedWeights(outlined.packed)
    watched.follow_changes()
    zeros = outlined.packed[0].held.zeros
    assert zeros is not None
    zeros.fill_(1)
    with pytest.raises(QFPassError, match="compile the model again"):
        watched.follow_changes()
