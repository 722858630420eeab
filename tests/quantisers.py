"""Models quantised by libraries, as transformers loads them, or by stand-ins, each beside a plainer one."""

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from quantised_stand_ins import EightBits, FourBits
from safetensors.torch import load_file, save_file
from tiny import FAMILIES
from torch import nn

GROUP = 32  # numbers that share a scale


def tiny_llama(dtype: torch.dtype = torch.float32) -> Any:
    return FAMILIES["llama"](layers=3, heads=4, kv_heads=2, head_dim=16, dtype=dtype)


def with_linears(model: Any, make: Callable[[Any], nn.Module]) -> Any:
    """The model with `make(linear)` in the place of each linear in its layers."""
    for path, module in list(model.named_modules()):
        if path.startswith("model.layers") and isinstance(module, nn.Linear):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, make(module))
    return model.eval()


def plain(weight: torch.Tensor, bias: torch.Tensor | None = None) -> nn.Linear:
    """A linear with these weights [N, K]."""
    rows, columns = weight.shape
    linear = nn.Linear(columns, rows, bias is not None, dtype=weight.dtype)
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    linear.bias = None if bias is None else nn.Parameter(bias.clone(), requires_grad=False)
    return linear


def loaded(folder: Path, quantization: Any = None, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM

    given = {} if quantization is None else {"quantization_config": quantization}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu", **given).eval()


def quantised(folder: Path, quantization: Any, dtype: torch.dtype = torch.float32) -> Any:
    tiny_llama(dtype).save_pretrained(folder)
    return loaded(folder, quantization, dtype)


def bitsandbytes(**settings: Any) -> Callable[[Path], tuple[Any, Any]]:
    """A model, and its equal with plain weights, dequantised by the library."""

    def make(folder: Path) -> tuple[Any, Any]:
        library = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install bitsandbytes")
        from transformers import BitsAndBytesConfig

        model = quantised(folder, BitsAndBytesConfig(**settings))
        packs = library.functional.has_avx512bf16()  # then scales are rounded to bfloat16

        def dequantised(linear: Any) -> nn.Linear:
            weight = linear.weight
            if weight.dtype is torch.int8:
                return plain(weight.CB.float() * weight.SCB[:, None] / 127)
            state = copy.copy(weight.quant_state)
            if state.nested:
                state.absmax = (
                    library.functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
                )
            state.absmax = state.absmax.bfloat16().float() if packs else state.absmax
            state.nested = False
            return plain(library.functional.dequantize_4bit(weight.data, state))

        return model, with_linears(tiny_llama(), dequantised_of(model, dequantised))

    return make


def dequantised_of(model: Any, make: Callable[[Any], nn.Module]) -> Callable[[Any], nn.Module]:
    """`make(linear)` of the model's linears in the order in which `with_linears` asks for them."""
    paths = iter([m for p, m in model.named_modules() if p.startswith("model.layers") and hasattr(m, "weight")
                  and isinstance(m, nn.Linear)])  # fmt: skip
    return lambda _: make(next(paths))


def quanto(kind: str) -> Callable[[Path], tuple[Any, Any]]:
    def make(folder: Path) -> tuple[Any, Any]:
        pytest.importorskip("optimum.quanto", reason="needs optimum-quanto: pip install optimum-quanto")
        from transformers import QuantoConfig

        model = quantised(folder, QuantoConfig(weights=kind))
        return model, model

    return make


def packed(codes: torch.Tensor, order: Sequence[int] = range(8)) -> torch.Tensor:
    """Codes [N, K] of four bits, eight in a number [N, K / 8]; the i-th lowest is number order[i]."""
    eight = codes.long().unflatten(-1, (-1, 8))[..., list(order)]
    whole = (eight << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(whole >= 2**31, whole - 2**32, whole).int()


def coded(
    shape: Sequence[int], method: str, generator: torch.Generator
) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """A linear's tensors by GPTQ's or AWQ's names, of random codes, and the weight [N, K] that they hold."""
    rows, columns = shape
    codes = torch.randint(16, (columns, rows), generator=generator)
    zeros = torch.randint(6, 10, (columns // GROUP, rows), generator=generator)
    scales = (torch.rand(columns // GROUP, rows, generator=generator) * 0.05 + 0.02).half()
    each = [t.repeat_interleave(GROUP, 0) for t in (zeros, scales)]
    weight = ((codes - each[0]) * each[1].float()).T
    if method == "gptq":  # zeros are one less
        held = {"qweight": packed(codes.T).T, "qzeros": packed(zeros - 1), "scales": scales}
        return held | {"g_idx": torch.arange(columns) // GROUP}, weight
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    return {"qweight": packed(codes, order), "qzeros": packed(zeros, order), "scales": scales}, weight


def checkpoint(method: str) -> Callable[[Path], tuple[Any, Any]]:
    """A GPTQ or AWQ checkpoint of random codes, as transformers loads it with gptqmodel."""

    def make(folder: Path) -> tuple[Any, Any]:
        pytest.importorskip("gptqmodel", reason="needs gptqmodel: pip install gptqmodel")
        model = tiny_llama()
        model.save_pretrained(folder)
        file, generator = folder / "model.safetensors", torch.Generator().manual_seed(0)
        written, weights = {}, {}
        for name, weight in load_file(file).items():
            path, is_linear = name.removesuffix(".weight"), name.endswith("_proj.weight")
            if not is_linear:
                written[name] = weight
                continue
            held, weights[path] = coded(weight.shape, method, generator)
            dtypes = {"scales": torch.float16}
            written |= {f"{path}.{k}": t.to(dtypes.get(k, torch.int32)).contiguous() for k, t in held.items()}
        save_file(written, file, metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        own = (
            {"desc_act": False, "sym": True} if method == "gptq" else {"zero_point": True, "version": "gemm"}
        )
        config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": GROUP, **own}
        (folder / "config.json").write_text(json.dumps(config))
        from transformers import AwqConfig, GPTQConfig

        chosen: Any = AwqConfig if method == "awq" else GPTQConfig
        backend = "torch_awq" if method == "awq" else "torch"  # others compile C++ when they are loaded
        paths = iter(
            p for p, m in model.named_modules() if p.startswith("model.layers") and isinstance(m, nn.Linear)
        )
        plainer = with_linears(model, lambda _: plain(weights[next(paths)]))
        return loaded(folder, chosen(bits=4, group_size=GROUP, backend=backend)), plainer

    return make


def compressed(folder: Path, **settings: Any) -> Any:
    """A model packed by compressed-tensors in four bits."""
    pytest.importorskip(
        "compressed_tensors", reason="needs compressed-tensors: pip install compressed-tensors"
    )
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationConfig,
        QuantizationStatus,
        apply_quantization_config,
    )
    from transformers import CompressedTensorsConfig

    model, weights = tiny_llama(), {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    config = QuantizationConfig(config_groups=groups, format="pack-quantized", ignore=["lm_head"])
    apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            module.weight_scale.data = module.weight.data.unflatten(-1, (-1, GROUP)).abs().amax(-1) / 7
            module.quantization_status = QuantizationStatus.FROZEN
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(folder)
    return loaded(folder, CompressedTensorsConfig(**settings) if settings else None)


def stand_in(kind: Any) -> Callable[[Path], tuple[Any, Any]]:
    def make(folder: Path) -> tuple[Any, Any]:
        model = with_linears(tiny_llama(), kind)
        return model, with_linears(tiny_llama(), dequantised_of(model, lambda own: plain(own.dequantised())))

    return make


def unpacked(folder: Path) -> tuple[Any, Any]:
    model = compressed(folder, dequantize=True)
    return model, model


# Each makes, in an empty folder, a model and one with the same numbers that is plainer.
FORMATS: dict[str, Callable[[Path], tuple[Any, Any]]] = {
    "a stand-in for eight bits": stand_in(EightBits),
    "a stand-in for four bits": stand_in(FourBits),
    "bitsandbytes int8": bitsandbytes(load_in_8bit=True),
    "bitsandbytes fp4": bitsandbytes(load_in_4bit=True),
    "bitsandbytes nf4, scales of eight bits": bitsandbytes(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    ),
    "quanto int8": quanto("int8"),
    "quanto int4": quanto("int4"),
    "quanto int2": quanto("int2"),
    "quanto float8": quanto("float8"),
    "GPTQ": checkpoint("gptq"),
    "AWQ": checkpoint("awq"),
    "compressed-tensors, dequantised": unpacked,
}
