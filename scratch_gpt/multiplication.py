"""A matrix -> what few rows are multiplied with fastest: the function x -> x W^T + b, W laid as the hardware likes.

At one row a product reads every weight once and does little else, so what counts is how the weights lie: in oneDNN's
blocks, or in the order of MKL's products, which read fp32 faster on Intel's processors.
"""

import warnings
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F


KINDS = (None, "int8")
MANY = 8  # rows that oneDNN multiplies faster than FBGEMM
Multiply = Callable[[torch.Tensor], torch.Tensor]  # (N, in) -> (N, out)
Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # (N, in) and (N, 1) -> (N, out)


def multiplication(weight: torch.Tensor, bias: torch.Tensor | None, quantize: str | None = None) -> Multiply:
    """W (out, in) and b (out,) -> the function x -> x W^T + b."""
    if quantize == "int8":
        return int8_multiplication(weight, bias)
    if weight.device.type != "cpu":
        return partial(F.linear, weight=weight, bias=bias)
    blocked = torch.backends.mkldnn.is_available() and (
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
        if weight.dtype == torch.bfloat16
        else weight.dtype == torch.float32 and not _is_mkl_at_home()
    )
    return (blocked_multiplication if blocked else transposed_multiplication)(weight, bias)


def _is_mkl_at_home() -> bool:
    # On a Xeon GPT-2's 49 products of one row take 15.8 ms by MKL, 19.4 by oneDNN; for an EPYC oneDNN was the better.
    return torch.backends.mkl.is_available() and "Intel" in torch.cpu.get_capabilities().get("cpu_name", "")


def transposed_multiplication(weight: torch.Tensor, bias: torch.Tensor | None) -> Multiply:
    """W kept as (in, out): what lies together is read for one input and added to all outputs."""
    turned = weight.t().contiguous()  # no copy where it came from a GPT-2 file, which keeps it so
    if bias is None:
        return lambda x: torch.mm(x, turned)
    return lambda x: torch.addmm(bias, x, turned)


def blocked_multiplication(weight: torch.Tensor, bias: torch.Tensor | None) -> Multiply:
    """W in the blocks that oneDNN reads fastest for one row; it reads them well for more."""
    blocks = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, blocks, bias, "none", [], "")


def whole_numbers(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """W (out, in) -> int8 of that shape, and the scale of each output (out,): their product is W, rounded."""
    scales = weight.abs().amax(1).float().clamp_(min=1e-12) / 127  # (out,)
    return (weight / scales[:, None]).round_().to(torch.int8), scales


def int8_multiplication(weight: torch.Tensor, bias: torch.Tensor | None) -> Multiply:
    """W as int8, each output scaled by its largest weight; x rounded to 8 bits, each row by its largest value.

    Packed twice where torch has FBGEMM: it takes few rows in half the time of oneDNN, and many in twice.
    """
    codes, scales = whole_numbers(weight)
    half = 127 if torch.cpu._is_vnni_supported() else 63  # without VNNI two products are added in 16 bits
    many = few = onednn_product(codes, scales, half)
    if has_fbgemm():
        few = fbgemm_product(codes, scales, half)
    bias = None if bias is None else bias.float()

    def run(x: torch.Tensor) -> torch.Tensor:
        largest = x.abs().amax(-1, keepdim=True).float().clamp_(min=1e-30)  # (N, 1)
        y = (few if len(x) < MANY else many)(x.float(), largest)
        return (y * largest if bias is None else torch.addcmul(bias, y, largest)).to(x.dtype)

    return run


def has_fbgemm() -> bool:
    """Whether this torch multiplies whole numbers by FBGEMM."""
    needed = hasattr(torch, "_make_per_channel_quantized_tensor") and hasattr(torch.ops.quantized, "linear_dynamic")
    return needed and torch.backends.quantized.engine in ("x86", "fbgemm")


def onednn_product(codes: torch.Tensor, scales: torch.Tensor, half: int) -> Product:
    """(x, largest) -> the codes of x / largest, in steps of 1 / half, times those of W."""
    packed = torch.ops.onednn.qlinear_prepack(codes, None)
    zeros = torch.zeros(len(codes), dtype=torch.int32)
    middle = torch.tensor(half + 1.5)  # where 0 is, and a half to round
    rest = (None, 1.0, 0, torch.float32, "none", [], "")  # no bias yet, the output as it is, nothing done with it

    def run(x: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        rounded = torch.addcdiv(middle, x, largest, value=half).to(torch.uint8)  # the cast cuts off
        return torch.ops.onednn.qlinear_pointwise(rounded, 1 / half, half + 1, packed, scales, zeros, *rest)

    return run


def fbgemm_product(codes: torch.Tensor, scales: torch.Tensor, half: int) -> Product:
    """The same product. FBGEMM rounds by itself, all rows by the range of what it is given.

    So two columns are given with them that W does not look at: they span the range in which a step is 1 / half and 0
    the code half + 1, whatever the rows hold. (torch means to remove these operations: then there is oneDNN.)
    """
    zeros = torch.zeros(len(codes), dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of their removal
        weight = torch._make_per_channel_quantized_tensor(F.pad(codes, (0, 2)), scales.double(), zeros, 0)
    packed = torch.ops.quantized.linear_prepack(weight, None)
    ends = torch.tensor([[-(half + 1) / half, 1.0]])

    def run(x: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
        given = torch.cat([x / largest, ends.expand(len(x), 2)], 1)
        return torch.ops.quantized.linear_dynamic(given, packed, half < 127)

    return run


__all__ = ["KINDS", "Multiply", "multiplication"]
