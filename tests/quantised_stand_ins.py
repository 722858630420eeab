"""Modules that do what quantisation libraries' do, where these aren't installed: by an opaque operator."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

BLOCK = 32  # numbers that share a scale of four bits


@torch.library.custom_op("qfpass_tests::opaque_linear", mutates_args=())
def opaque_linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A product that torch can't tell the form of, as no fake is registered."""
    return F.linear(x, weight)


class EightBits(nn.Linear):
    """As bitsandbytes' Linear8bitLt: a scale for each row, kept in an object that is no module."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.bias = linear.bias
        scale = linear.weight.detach().abs().amax(1)
        codes = (linear.weight.detach() / scale[:, None] * 127).round().to(torch.int8)
        self.weight = nn.Parameter(codes, requires_grad=False)
        self.weight.CB = None  # type: ignore[attr-defined]
        self.state = SimpleNamespace(CB=codes, SCB=scale, has_fp16_weights=False)

    def dequantised(self) -> torch.Tensor:
        return self.state.CB * self.state.SCB[:, None] / 127

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input [..., K] -> [..., N]."""
        out = opaque_linear(input, self.dequantised())
        return out if self.bias is None else out + self.bias


class FourBits(nn.Linear):
    """As bitsandbytes' Linear4bit: two codes a byte, a scale a block, itself of eight bits."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False)
        self.bias = linear.bias
        code, wide = torch.linspace(-1, 1, 16), torch.linspace(-1, 1, 256)
        blocks = linear.weight.detach().view(-1, BLOCK)
        scale = blocks.abs().amax(1)
        offset = scale.mean()
        outer = (scale - offset).abs().max()
        inner = ((scale - offset)[:, None] / outer - wide).abs().argmin(1).to(torch.uint8)
        own = wide[inner.int()] * outer + offset
        nearest = ((blocks / own[:, None])[..., None] - code).abs().argmin(-1).flatten().to(torch.uint8)
        self.weight = nn.Parameter((nearest[::2] << 4 | nearest[1::2])[:, None], requires_grad=False)
        self.compute_dtype = None
        groups = -(-len(scale) // 256)
        self.weight.quant_state = SimpleNamespace(  # type: ignore[attr-defined]
            shape=linear.weight.shape, blocksize=BLOCK, absmax=inner, code=code, nested=True, offset=offset,
            state2=SimpleNamespace(code=wide, absmax=outer.expand(groups).clone(), blocksize=256),
        )  # fmt: skip
        self.numbers = code[nearest.int()].view(-1, BLOCK) * own[:, None]

    def dequantised(self) -> torch.Tensor:
        return self.numbers.view(self.weight.quant_state.shape)  # type: ignore[attr-defined]

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input [..., K] -> [..., N]."""
        out = opaque_linear(input, self.dequantised())
        return out if self.bias is None else out + self.bias


class Opaque(nn.Linear):
    """A linear of a library that isn't known."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """input [..., K] -> [..., N]."""
        return opaque_linear(input, self.weight)


for _kind, _name in ((EightBits, "Linear8bitLt"), (FourBits, "Linear4bit")):
    _kind.__module__, _kind.__name__ = "bitsandbytes.nn.modules", _name
Opaque.__module__ = "vptq.layers"
