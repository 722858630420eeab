"""One query over a store on a GPU: against softmax, and inside compiled models.

On a processor Triton's interpreter runs the operator (`make triton`), or its reference without Triton.
"""

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from attention_contract import TOLERANCE, check, random
from rows import ROWS, padded
from tiny import FAMILIES

import qfpass
from qfpass.kernels import reference
from qfpass.kernels.cuda.step_attention.attend import attend
from qfpass.kernels.cuda.step_attention.op import attend_by_reference, attend_slots
from qfpass.kernels.distance_bias import DistanceBias
from qfpass.kernels.form import AttentionForm
from qfpass.kernels.int4 import dequantize_int4, quantize_to_int4
from qfpass.kernels.kernel import Kernel
from qfpass.rewriting import uncompressed
from qfpass.store.int4_values import Int4ValueSlots
from qfpass.store.int8_slots import Int8Slots, dequantize, quantize
from qfpass.store.kernel_call import KernelCall
from qfpass.store.kv_form import KVForm
from qfpass.store.layer import Rule
from qfpass.store.layer_inputs import LayerInputs
from qfpass.store.ring import RingRule
from qfpass.store.ring_attention import RingAttention
from qfpass.store.slot_attention import SlotAttention
from qfpass.store.slots import SlotRule, Slots

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.cuda if DEVICE == "cuda" else []


def _by_interpreter(*operands: Any) -> tuple[torch.Tensor, torch.Tensor]:
    from qfpass.kernels.cuda.step_attention.launch import launch

    return launch(*operands)


attend_slots.register_kernel("cpu")(_by_interpreter if IS_INTERPRETED else attend_by_reference)

# Rows, kv heads, queries a head, keys, and dimensions of keys and values.
SHAPES = [(1, 1, 1, 1, 16, 16), (2, 2, 3, 150, 33, 48), (2, 1, 20, 65, 8, 80), (1, 1, 40, 300, 16, 16)]


@pytest.mark.parametrize(("form", "softcap"), [("plain", None), ("bias", 0.5)])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_agrees_with_softmax(
    shape: tuple[int, ...], dtype: torch.dtype, form: str, softcap: float | None
) -> None:
    rows, heads, group, keys, dim, value_dim = shape
    operands = random(rows, heads, group, 1, keys, dim, value_dim, dtype, 0, DEVICE)
    check(attend, form, *operands, window=0, softcap=softcap)


@pytest.mark.parametrize("bits", ["int8", "int4"])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("shape", [(1, 2, 4, 65, 64, 64), (2, 1, 7, 130, 24, 96)], ids=str)
def test_reads_codes(shape: tuple[int, ...], dtype: torch.dtype, bits: str) -> None:
    """The filled slots of a larger store, whose scales have gaps between heads."""
    rows, heads, group, keys, dim, value_dim = shape
    query, key, value = random(rows, heads, group, 1, keys + 9, dim, value_dim, dtype, 0, DEVICE)
    stored, scales, numbers = coded(key, value, bits)
    store, scales, numbers = ([each[:, :, :keys] for each in kind] for kind in (stored, scales, numbers))
    out, lse = attend(query, *store, scale=0.3, scales=tuple(scales))
    wanted, wanted_lse = reference.attend(query.float(), *numbers, scale=0.3)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(out.float(), wanted, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    torch.testing.assert_close(lse, wanted_lse, rtol=2e-5, atol=2e-5)


def coded(key: torch.Tensor, value: torch.Tensor, bits: str) -> tuple[list[torch.Tensor], ...]:
    """Codes, scales, and the float32 numbers that these are."""
    key_codes, key_scales = quantize(key)
    value_codes, value_scales = (quantize if bits == "int8" else quantize_to_int4)(value)
    read = dequantize if bits == "int8" else dequantize_int4
    numbers = [
        dequantize(key_codes, key_scales, torch.float32),
        read(value_codes, value_scales, torch.float32),
    ]
    return [key_codes, value_codes], [key_scales, value_scales], numbers


def test_rows_see_lengths_of_their_own() -> None:
    """None, one, an odd number and all, and nothing of what lies behind them."""
    query, key, value = random(4, 2, 3, 1, 150, 16, 16, torch.float32, 0, DEVICE)
    lengths = [0, 1, 77, 150]
    for row, length in enumerate(lengths):
        key[row, :, length:], value[row, :, length:] = float("nan"), float("nan")
    out, lse = attend(query, key, value, scale=0.3, lengths=torch.tensor(lengths, device=DEVICE))
    assert (out[0] == 0).all() and (lse[0] == float("-inf")).all()
    for row, length in list(enumerate(lengths))[1:]:
        one = slice(row, row + 1)
        wanted = reference.attend(query[one], key[one, :, :length], value[one, :, :length], scale=0.3)
        torch.testing.assert_close((out[one], lse[one]), wanted, rtol=2e-5, atol=2e-5)


def test_a_bias_may_hide_all_keys_of_a_part() -> None:
    query, key, value = random(1, 1, 2, 1, 300, 16, 16, torch.float32, 0, DEVICE)
    bias = torch.zeros(1, 1, 1, 300, device=DEVICE)
    bias[..., :200] = float("-inf")
    shown = reference.attend(query, key[:, :, 200:], value[:, :, 200:], scale=0.3)
    torch.testing.assert_close(attend(query, key, value, scale=0.3, bias=bias), shown, rtol=2e-5, atol=2e-5)


def test_reads_any_strides() -> None:
    for i, j in ((1, 2), (2, 3)):
        operands = [
            t.transpose(i, j).contiguous().transpose(i, j)
            for t in random(2, 2, 3, 1, 9, 16, 16, torch.float32, 0, DEVICE)
        ]
        check(attend, "plain", *operands, window=0)


@pytest.mark.parametrize("bits", [None, "int8", "int4"])
def test_the_operator_is_what_its_fake_says(bits: str | None) -> None:
    query, key, value = random(2, 2, 3, 1, 20, 16, 32, torch.bfloat16, 0, DEVICE)
    store, scales = [key, value], [None, None]
    if bits:
        store, scales, _ = coded(key, value, bits)  # type: ignore[assignment]
    lengths = torch.tensor([20, 3], device=DEVICE)
    torch.library.opcheck(attend_slots, (query, *store, *scales, None, lengths, 0.3, 30.0))


FORMS = [
    AttentionForm(0.3),
    AttentionForm(0.3, softcap=2.0),
    AttentionForm(0.3, bias=DistanceBias((0.5, 0.25, 0.125, 0.1))),
    AttentionForm(0.3, has_sink=True),
]
RULES: list[Rule] = [
    *(
        SlotRule(40, recent=1, sinks=0, score="recency", is_bounded=False, store_type=kind)
        for kind in (Slots, Int8Slots, Int4ValueSlots)
    ),
    RingRule(12),
    RingRule(12, chunked=True),
]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize(
    "rule", RULES, ids=lambda rule: f"{type(rule).__name__} {getattr(rule, 'store_type', rule)}"
)
def test_layers_step_by_it(rule: Rule, form: AttentionForm) -> None:
    """Rows of different lengths, beside the same layer without it."""
    if isinstance(rule, RingRule) and form.bias:
        pytest.skip("a ring's logits have no bias")
    steps, lengths = list[int](), torch.tensor([9, 31], device=DEVICE)

    def counted(*operands: Any, **form: Any) -> tuple[torch.Tensor, torch.Tensor]:
        steps.append(len(operands))
        return attend(*operands, **form)

    plain = KernelCall(Kernel("reference", reference.attend, form.softcap), form)
    calls = plain, replace(plain, step=Kernel("counted", counted, form.softcap))
    torch.testing.assert_close(*(stepped(rule, call, lengths) for call in calls), rtol=2e-5, atol=2e-5)
    assert len(steps) == 1


def stepped(rule: Rule, call: KernelCall, lengths: torch.Tensor) -> torch.Tensor:
    """A layer's output for the last token of rows that hold so many tokens."""
    layer: Any = (RingAttention if isinstance(rule, RingRule) else SlotAttention)(call, rule)
    store = rule.allocate(len(lengths), KVForm(2, 32, 32, torch.float32, lengths.device))
    sink = torch.linspace(-1, 2, 4, device=DEVICE) if call.form.has_sink else None
    text = random(len(lengths), 2, 2, 40, 40, 32, 32, torch.float32, 0, DEVICE)
    for row, length in enumerate(lengths.tolist()):
        own = [each[row : row + 1] for each in store]
        piece = [each[row : row + 1, :, : length - 1] for each in text]
        position = torch.arange(length - 1, device=DEVICE)[None]
        layer(*piece, *LayerInputs(position, torch.empty(0), sink=sink), *own)
    position = lengths[:, None] - 1
    last = [
        torch.stack([each[row, :, place] for row, place in enumerate(position.tolist())]) for each in text
    ]
    inputs = LayerInputs(position, torch.empty(int(lengths.max())), lengths=lengths, sink=sink)
    return layer.to(DEVICE)(*last, *inputs, *store)


@torch.no_grad()
def test_a_model_steps_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight bits, rows of different lengths, past full stores, lowered by Inductor."""
    settings: dict[str, Any] = {
        "budget": 24, "context_length": 80, "recent": 4, "score": "knorm", "store_dtype": torch.int8,
        "verify": False,
    }  # fmt: skip
    model = FAMILIES["llama"]().to(DEVICE)
    monkeypatch.setattr(uncompressed, "choose_step_kernel", lambda *_: None)
    plain: Any = qfpass.compile(model, backend="eager", **settings)
    monkeypatch.setattr(uncompressed, "choose_step_kernel", lambda *_: Kernel("triton", attend))
    stepping: Any = qfpass.compile(model, **settings)
    assert "steps by triton" in str(qfpass.report(stepping))
    torch.testing.assert_close(steps(stepping), steps(plain), rtol=1e-4, atol=1e-4)


def steps(model: Any) -> torch.Tensor:
    """Logits of two texts' last tokens and of three steps."""
    texts = padded(ROWS[:2], "left")
    session = model.session()
    found = [model(**{k: v.to(DEVICE) for k, v in texts.items()}, past_key_values=session).logits[:, -1:]]
    for token in range(3):
        ids = torch.full((2, 1), token, device=DEVICE)
        found.append(model(input_ids=ids, past_key_values=session).logits)
    return torch.cat(found, dim=1)
