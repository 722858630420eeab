"""Linears of quantisation libraries as plain tensors and the same product in plain torch.

Their own are kernels that a graph can't hold, or tensors that don't tell of what they consist. Each reader
here gives None for what it doesn't know.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..upstream.quanto import few_bits_of


class PlainLinear(NamedTuple):
    """What computes a linear, and the tensors by name that take the place of its weight.

    Attributes:
        tensors: empty for a linear whose own buffers are read.
        forward: (module, x [..., K]) -> [..., N]; reads the tensors as the module's attributes.
    """

    tensors: dict[str, torch.Tensor]
    forward: Callable[[Any, torch.Tensor], torch.Tensor]


# Quantisation libraries' packages, by what they are called.
LIBRARIES = {
    "aqlm": "AQLM", "auto_gptq": "AutoGPTQ", "awq": "AutoAWQ", "bitsandbytes": "bitsandbytes",
    "compressed_tensors": "compressed-tensors", "eetq": "EETQ", "fbgemm_gpu": "FBGEMM",
    "gptqmodel": "GPTQModel", "hqq": "HQQ", "optimum": "optimum-quanto", "quark": "Quark",
    "torchao": "torchao", "vptq": "VPTQ",
}  # fmt: skip


def library_of(model: nn.Module) -> str | None:
    """The name of the library that quantised a model, told by its modules and weights, else by its config.

    None if nothing tells of one.
    """
    kinds = {type(each) for each in (*model.modules(), *model.parameters(), *model.buffers())}
    packages = {base.__module__.partition(".")[0] for kind in kinds for base in kind.__mro__}
    if found := sorted(packages & LIBRARIES.keys()):
        return " and ".join(LIBRARIES[name] for name in found)
    config: Any = getattr(getattr(model, "config", None), "quantization_config", None)
    method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
    return None if method is None else str(getattr(method, "value", method))


def plain_linear(module: nn.Module) -> PlainLinear | None:
    """What a library's linear computes; None for any other module, or one in a state that isn't known."""
    reader = _reader(module)
    try:
        return reader(module) if reader else None
    except AttributeError:  # another version of the library holds something else
        return None


def state_of(module: nn.Module) -> list[Any]:
    """The objects, no modules, in which a library keeps a linear's codes and scales."""
    weight = getattr(module, "weight", None)
    quantised = getattr(weight, "quant_state", None)
    found = (weight, getattr(module, "state", None), quantised, getattr(quantised, "state2", None))
    return [each for each in found if hasattr(each, "__dict__")]


def is_library_linear(module: nn.Module) -> bool:
    """Whether a module is of a class that has a reader here, whatever its state."""
    return _reader(module) is not None


def _reader(module: nn.Module) -> Callable[[Any], PlainLinear | None] | None:
    names = ((kind.__module__.partition(".")[0], kind.__name__) for kind in type(module).__mro__)
    return next((_READERS[name] for name in names if name in _READERS), None)


def _eight_bits(module: Any) -> PlainLinear | None:
    """Of bitsandbytes: a scale for each row. The library rounds x to eight bits as well; here it stays."""
    state, weight = module.state, module.weight
    if state.has_fp16_weights:
        return None
    fresh = getattr(weight, "CB", None) is not None  # until its first call
    codes, scales = (weight.CB, weight.SCB) if fresh else (state.CB, state.SCB)
    if codes is None or scales is None:
        return None

    def forward(module: Any, x: torch.Tensor) -> torch.Tensor:
        scale = module.weight_scale / 127
        if x.dtype is torch.float16:  # sums of whole numbers go past its largest
            return F.linear(x, (module.weight * scale[:, None]).to(x.dtype), _cast(module.bias, x))
        out = F.linear(x, module.weight.to(x.dtype)) * scale
        return (out if module.bias is None else out + module.bias).to(x.dtype)

    return PlainLinear({"weight": codes, "weight_scale": scales}, forward)


def _four_bits(module: Any) -> PlainLinear | None:
    """Of bitsandbytes: sixteen numbers, a scale for each block; the scales may be of eight bits again."""
    weight = module.weight
    state = getattr(weight, "quant_state", None)
    if state is None or len(state.shape) != 2 or state.shape[1] % state.blocksize or state.shape[1] % 2:
        return None
    rows, columns = state.shape
    if columns != module.in_features:  # it was made of a transposed weight
        return None
    block, wide, is_packed = state.blocksize, module.compute_dtype, hasattr(state, "original_qshape")
    codes = weight.data.as_subclass(torch.Tensor).view(torch.uint8)
    tensors = {"weight": codes, "weight_scale": state.absmax, "weight_code": state.code}
    if state.nested:
        tensors |= {"scale_code": state.state2.code, "scale_scale": state.state2.absmax}
        tensors |= {"scale_offset": torch.as_tensor(state.offset, device=codes.device)}
    outer = state.state2.blocksize if state.nested else 0

    def scales(module: Any) -> torch.Tensor:
        if is_packed:  # [K / block, N]
            return module.weight_scale.T.float()
        found = module.weight_scale
        if outer:
            each = module.scale_scale.repeat_interleave(outer)[: found.numel()]
            found = module.scale_code[found.int()] * each + module.scale_offset
        return found.view(rows, -1)

    def forward(module: Any, x: torch.Tensor) -> torch.Tensor:
        numbers = module.weight_code[(_packed_for_avx512 if is_packed else _in_pairs)(module.weight, rows)]
        dequantised = (numbers.view(rows, -1, block) * scales(module)[..., None]).view(rows, columns)
        dtype = torch.promote_types(x.dtype, wide) if wide else x.dtype
        return F.linear(x.to(dtype), dequantised.to(dtype), _cast(module.bias, x, dtype)).to(x.dtype)

    return PlainLinear(tensors, forward)


def _in_pairs(codes: torch.Tensor, rows: int) -> torch.Tensor:
    """Codes [N, K] of bytes that hold two each, the first in the upper bits."""
    return torch.stack([codes >> 4, codes & 15], -1).view(rows, -1).int()


def _packed_for_avx512(codes: torch.Tensor, rows: int) -> torch.Tensor:
    """Codes [N, K] of bytes [N, K / 2] as bitsandbytes orders them for AVX-512.

    Of 32 rows and two columns, 64 codes, the first half is in the lower bits.
    """
    codes = codes.view(rows // 32, -1, 32)
    both = torch.cat([codes & 15, codes >> 4], -1)
    return both.unflatten(-1, (32, 2)).transpose(1, 2).reshape(rows, -1).int()


def _quanto_bits(module: Any) -> PlainLinear | None:
    """Of optimum-quanto in two or four bits, a scale and a shift for each group of a row."""
    held, shape = few_bits_of(module.weight), tuple(module.weight.shape)
    if held is None or module.activation_qtype is not None:
        return None
    bits, groups = held.bits, held.groups
    tensors = {"weight": held.codes, "weight_scale": held.scales, "weight_shift": held.shifts}

    def forward(module: Any, x: torch.Tensor) -> torch.Tensor:
        parts = [(module.weight >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
        numbers, shift = torch.cat(parts)[:groups], module.weight_shift
        if shift.is_floating_point():
            dequantised = module.weight_scale * numbers - shift
        else:
            dequantised = module.weight_scale * (numbers.to(torch.int8) - shift.to(torch.int8))
        return F.linear(x, dequantised.view(shape).to(x.dtype), module.bias)

    return PlainLinear(tensors, forward)


def _gptq(module: Any) -> PlainLinear | None:
    """Of gptqmodel in GPTQ's layout: codes packed along columns, each of a group that `g_idx` names."""
    if not _has_layout(module, rows_packed=False) or module.qzero_format() not in (1, 2):
        return None
    bits, offset = module.bits, 2 - module.qzero_format()

    def forward(module: Any, x: torch.Tensor) -> torch.Tensor:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=x.device)
        mask, group = 2**bits - 1, module.g_idx.long()
        codes = ((module.qweight[:, None] >> shifts[:, None]) & mask).flatten(0, 1)
        zeros = (((module.qzeros[..., None] >> shifts) & mask).flatten(1) + offset) & mask
        return _grouped(module, x, codes, zeros[group], module.scales[group])

    return PlainLinear({}, forward)


def _awq(module: Any) -> PlainLinear | None:
    """Of gptqmodel in AWQ's layout: eight codes of a row, the even ones first."""
    if module.bits != 4 or not _has_layout(module, rows_packed=True):
        return None

    def forward(module: Any, x: torch.Tensor) -> torch.Tensor:
        shifts = torch.tensor([0, 16, 4, 20, 8, 24, 12, 28], dtype=torch.int32, device=x.device)
        codes, zeros = (
            ((packed[..., None] >> shifts) & 15).flatten(1) for packed in (module.qweight, module.qzeros)
        )
        each = codes.shape[0] // zeros.shape[0]
        zeros, scales = (t.repeat_interleave(each, 0) for t in (zeros, module.scales))
        return _grouped(module, x, codes, zeros, scales)

    return PlainLinear({}, forward)


def _has_layout(module: Any, rows_packed: bool) -> bool:
    """Whether gptqmodel's buffers lie as in a checkpoint: some of its kernels order them anew."""
    codes, zeros, scales = (getattr(module, name, None) for name in ("qweight", "qzeros", "scales"))
    if codes is None or zeros is None or scales is None or module.bits not in (2, 4, 8):
        return False
    if module.adapter is not None or getattr(module, "linear_mode", None) == "inference":
        return False
    columns, rows, packed = module.in_features, module.out_features, 32 // module.bits
    sizes = (columns, rows // packed) if rows_packed else (columns // packed, rows)
    groups = len(scales)
    return (
        codes.dtype is zeros.dtype is torch.int32
        and tuple(codes.shape) == sizes
        and tuple(zeros.shape) == (groups, rows // packed)
        and tuple(scales.shape) == (groups, rows)
        and columns % groups == 0
    )


def _grouped(
    module: Any, x: torch.Tensor, codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor
) -> torch.Tensor:
    """The product of x [..., K] with (codes - zeros) * scales, each [K, N]."""
    weight = ((codes - zeros) * scales.float()).to(x.dtype)
    out = torch.matmul(x, weight)
    return out if module.bias is None else out + module.bias.to(x.dtype)


def _cast(
    bias: torch.Tensor | None, x: torch.Tensor, dtype: torch.dtype | None = None
) -> torch.Tensor | None:
    return None if bias is None else bias.to(dtype or x.dtype)


# By the library's name and the class's.
_READERS: dict[tuple[str, str], Callable[[Any], PlainLinear | None]] = {
    ("bitsandbytes", "Linear8bitLt"): _eight_bits,
    ("bitsandbytes", "Linear4bit"): _four_bits,
    ("optimum", "QLinear"): _quanto_bits,
    ("gptqmodel", "GPTQQuantLinear"): _gptq,
    ("gptqmodel", "AWQuantLinear"): _awq,
}
