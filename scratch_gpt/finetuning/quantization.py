"""Freeze linear layers and store their matrices in 8 or 4 bits, as the base for training LoRA (QLoRA).

nf4 (Dettmers et al. 2023, "QLoRA"): each block of 64 values is scaled by its largest; each value becomes the nearest
of 16 quantiles of a normal distribution, two values per byte. int8: each row is scaled by its largest value.
The full matrix is computed at each use, once in the forward and once in the backward pass, and never stored.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


QUANTIZATION_KINDS = ("nf4", "int8")
NF4_BLOCK = 64


class QuantizedLinear(nn.Linear):
    """Compute x W^T + b, (..., in) -> (..., out), with W dequantized at each call; W and b get no gradient."""

    codes: torch.Tensor
    scales: torch.Tensor

    def __init__(self, linear: nn.Linear, kind: str):
        nn.Module.__init__(self)
        self.in_features, self.out_features, self.kind = linear.in_features, linear.out_features, kind
        self.bias = linear.bias
        codes, scales = _quantize(linear.weight.detach().float().contiguous(), kind)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    @property
    def weight(self) -> torch.Tensor:
        """W (out, in) in fp32."""
        if self.kind == "int8":
            return self.codes * self.scales
        from bitsandbytes.functional import QuantState, dequantize_4bit

        shape = torch.Size((self.out_features, self.in_features))
        state = QuantState(self.scales, shape=shape, blocksize=NF4_BLOCK, quant_type="nf4", dtype=torch.float32)
        return dequantize_4bit(self.codes, state)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _Multiply.apply(x, self)


class _Multiply(torch.autograd.Function):
    # F.linear would keep the full matrix from the forward to the backward pass.

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: QuantizedLinear) -> torch.Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        return F.linear(x, layer.weight.to(x.dtype), layer.bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return (gradient @ ctx.layer.weight.to(gradient.dtype)).to(ctx.dtype), None


def quantize_linears(model: nn.Module, kind: str) -> None:
    """Replace every nn.Linear below `model`, in place.

    Raises:
        ValueError: an unknown kind.
        ImportError: nf4 needs bitsandbytes.
    """
    if kind not in QUANTIZATION_KINDS:
        raise ValueError(f"quantize_base is {kind!r}; it must be one of {', '.join(QUANTIZATION_KINDS)}.")
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, QuantizedLinear(child, kind))


def _quantize(weight: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    if kind == "int8":
        scales = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        return (weight / scales).round().to(torch.int8), scales
    try:
        from bitsandbytes.functional import quantize_4bit
    except ImportError as error:
        raise ImportError('nf4 needs bitsandbytes, which is an extra: pip install "scratch_gpt[quantize]"') from error
    codes, state = quantize_4bit(weight, blocksize=NF4_BLOCK, quant_type="nf4")
    return codes, state.absmax


__all__ = ["QUANTIZATION_KINDS", "QuantizedLinear", "quantize_linears"]
