"""Compact copies hold exactly the weights' numbers, and steps that read them are the model's."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from bounded import graphs_of_one_batch, run_plainly
from test_families import close, text
from tiny import FAMILIES
from torch import nn

import qfpass
from qfpass.errors import ConfigError, QFPassError
from qfpass.kernels.cpu.coded_linear.op import BLOCK, decode
from qfpass.regions.compact_weights import copy_of
from qfpass.regions.step_linears import linears

SETTINGS: dict[str, Any] = {"budget": 12, "context_length": 64, "recent": 6, "score": "recency"}


def coded(weight: torch.Tensor) -> torch.Tensor:
    """The nearest of 256 levels of each block, a step apart."""
    blocks = weight.reshape(-1, BLOCK)
    steps = (blocks.abs().amax(1, keepdim=True) / 127).half().float()
    return ((blocks / steps).round() * steps).view_as(weight)


def halved(weight: torch.Tensor) -> torch.Tensor:
    return weight.bfloat16().float()


@torch.no_grad()
def made(family: str, change: Callable[[torch.Tensor], torch.Tensor]) -> nn.Module:
    model = FAMILIES[family]()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.copy_(change(module.weight))
    return model


def compacted(model: nn.Module, **settings: Any) -> nn.Module:
    return qfpass.compile(model, compact_weights=True, verify=False, **(SETTINGS | settings))


def steps(model: nn.Module, ids: torch.Tensor, read_first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a chunk of `read_first` tokens and of the steps that follow, in a session of their own."""
    session = model.session()
    pieces = [ids[:, :read_first], *ids[:, read_first:].split(1, dim=1)]
    first, *later = (model(piece, past_key_values=session).logits for piece in pieces)
    return first, torch.cat(later, dim=1)


@pytest.mark.parametrize(
    ("family", "change"), [("qwen2", coded), ("llama", halved)], ids=["codes and biases", "half"]
)
@torch.no_grad()
def test_steps_are_those_of_the_weights(family: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Steps that fill the store and steps that are replayed; they read the copies, which chunks don't."""
    model = made(family, change)
    eager = qfpass.compile(model, backend="eager", verify=False, **SETTINGS)
    compact = compacted(model)
    ids = text(30)
    chunk, later = steps(compact, ids, 7)
    for out, wanted in zip((chunk, later), steps(eager, ids, 7), strict=True):
        close(out, wanted)
    decoder = compact.qfpass_decoder
    assert qfpass.report(compact).graphs_compiled == graphs_of_one_batch(compact)
    for copy in decoder.graphs.outlined.copies:
        copy.zero_()
    spoiled_chunk, spoiled = steps(compact, ids, 7)
    torch.testing.assert_close(spoiled_chunk, chunk)
    assert spoiled.abs().max() == 0  # the head reads a copy too


@torch.no_grad()
def test_steps_of_several_rows_read_the_copies() -> None:
    model, ids = made("llama", coded), text(12, batch=3)
    eager = qfpass.compile(model, backend="eager", verify=False, **SETTINGS)
    compact = run_plainly(compacted(model))
    for out, wanted in zip(steps(compact, ids, 9), steps(eager, ids, 9), strict=True):
        close(out, wanted)
    for copy in compact.qfpass_decoder.graphs.outlined.copies:
        copy.zero_()
    assert steps(compact, ids, 9)[1].abs().max() == 0


@torch.no_grad()
def test_layers_may_share_weights() -> None:
    """One copy serves all."""
    model = made("llama", coded)
    model.model.layers[1].self_attn.q_proj.weight = model.model.layers[0].self_attn.q_proj.weight
    for name in ("k_proj", "v_proj"):
        setattr(model.model.layers[1].self_attn, name, getattr(model.model.layers[0].self_attn, name))
    outlined = compacted(model).qfpass_decoder.graphs.outlined
    copied = [id(weight) for weight in outlined.copied]
    assert len(copied) == len(set(copied)) == 2 * 7 + 1 - 3


def test_every_linear_of_every_layer_is_copied() -> None:
    model = made("llama", coded)
    outlined = compacted(model).qfpass_decoder.graphs.outlined
    linears = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    assert {id(weight) for weight in outlined.copied} == {id(weight) for weight in linears}
    numbers = sum(weight.numel() for weight in linears)
    assert sum(copy.nbytes for copy in outlined.copies) == numbers + 2 * 4 * numbers // BLOCK


def test_a_copy_is_read_however_its_weight_lies() -> None:
    """Told from the weight by numbers of its own here."""
    weight, x = torch.randn(8, 32).T.contiguous().T, torch.randn(1, 1, 32)
    (out,) = linears(x, [weight], [None], [2 * weight.bfloat16().contiguous()])
    torch.testing.assert_close(out, x @ (2 * weight.bfloat16()).float().T)


@torch.no_grad()
def test_what_one_layer_has_no_copy_of_is_left_alone_in_all() -> None:
    """With the linears that read the same input."""
    model = made("llama", coded)
    layer = model.model.layers[1]
    layer.mlp.up_proj.weight.copy_(torch.randn_like(layer.mlp.up_proj.weight))
    copied = {id(weight) for weight in compacted(model).qfpass_decoder.graphs.outlined.copied}
    for each in model.model.layers:
        assert not {id(each.mlp.up_proj.weight), id(each.mlp.gate_proj.weight)} & copied
        assert {id(each.mlp.down_proj.weight), id(each.self_attn.v_proj.weight)} <= copied


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_copies_in_half_precision_are_exact(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(rows, 40, generator=generator).to(dtype).float() for rows in (3, 5)]
    copy = copy_of(weights)
    assert copy is not None and [tensor.dtype for tensor in copy] == [dtype]
    assert torch.equal(copy[0].float(), torch.cat(weights))


def test_codes_come_before_half_precision() -> None:
    weight = torch.arange(16.0).repeat(3, 4)
    copy = copy_of([weight])
    assert copy is not None and len(copy) == 3 and torch.equal(decode(*copy), weight)


def test_weights_of_full_precision_or_in_half_have_no_copy() -> None:
    assert copy_of([torch.randn(4, BLOCK)]) is None
    assert copy_of([torch.randn(4, BLOCK).bfloat16()]) is None


@pytest.mark.parametrize("changed", ["in place", "elsewhere", "elsewhere and back"])
@torch.no_grad()
def test_changed_weights_are_refused(changed: str) -> None:
    model = made("llama", coded)
    compact = compacted(model)
    weight = model.model.layers[1].self_attn.q_proj.weight
    if changed == "in place":
        weight.mul_(2)
    else:
        for _ in range(2 if changed == "elsewhere and back" else 1):
            weight.data = weight.data * 2
    for ids in (torch.tensor([[3]]), torch.tensor([[3, 4]])):
        with pytest.raises(
            QFPassError, match=r"weights have changed.*compact_weights: compile the model again"
        ):
            compact(ids)


def test_it_refuses_what_it_cant_do() -> None:
    with pytest.raises(ConfigError, match="no linear's weights"):
        compacted(FAMILIES["llama"]())
    with pytest.raises(ConfigError, match="not for backend 'eager'"):
        compacted(made("llama", coded), backend="eager")


def test_the_report_tells_what_copies_take() -> None:
    compact = compacted(made("llama", coded))
    report = qfpass.report(compact)
    outlined = compact.qfpass_decoder.graphs.outlined
    assert report.compact_nbytes == sum(copy.nbytes for copy in outlined.copies) > 0
    assert report.copied_nbytes == sum(weight.nbytes for weight in outlined.copied)
    assert report.copied_nbytes < report.weight_nbytes  # norms and the embedding have no copies
    assert "steps read 0.1 of 0.1 MiB of weights as 0.0 of compact ones" in " ".join(str(report).split())
