"""Store a matrix in the layout that multiplies few rows fastest, and compute x W^T + b with it.

With one row, the time of a product is that of reading the weights, so the layout decides: blocks of oneDNN; the order
of MKL, which reads fp32 faster on Intel's processors; or integers in the layout of FBGEMM.
"""

from typing import TYPE_CHECKING, Any, NamedTuple, Optional

import torch
import torch.nn.functional as F


if TYPE_CHECKING:
    Packed = Any
else:
    try:
        Packed = torch.classes.quantized.LinearPackedParamsBase  # FBGEMM's
    except RuntimeError:  # torch will remove these operations; then oneDNN does everything
        Packed = torch.Tensor

MATMUL_KINDS = (None, "int8")
MIN_ONEDNN_ROWS = 16  # with this number of rows or more, oneDNN multiplies faster than FBGEMM


class Int8(NamedTuple):
    """W (out, in) as integers from -127 to 127, each output scaled by its largest weight, for FBGEMM and oneDNN."""

    packed: Optional[Packed]  # noqa: UP045  # for FBGEMM, with b
    blocks: torch.Tensor  # for oneDNN
    scales: torch.Tensor  # (out,)
    sums: torch.Tensor  # (out,) of each output's weights
    zeros: torch.Tensor  # (out,) zero points, all 0
    bias: torch.Tensor  # (out,) zeros without a bias
    top: int  # rows are rounded to integers from 0 to this


class Matrix(NamedTuple):
    """W (out, in) and b (out,), laid out for `multiply`."""

    layout: str  # rows: W itself; columns: (in, out); blocks: of oneDNN; int8: see `int8`, and `weight` is for step.c
    weight: torch.Tensor
    bias: torch.Tensor | None
    int8: Int8 | None = None


def lay_out(
    weight: torch.Tensor, bias: torch.Tensor | None, quantize: str | None = None, compile: bool = False
) -> Matrix:
    """Return W (out, in) and b (out,) in the layout that this processor multiplies fastest; a copy, except on a GPU.

    With `compile` return the layout of step.c: the weights themselves, or int8, row by row.
    """
    if quantize == "int8":
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        codes, int8 = whole_numbers(weight, bias.float(), compile)
        return Matrix("int8", codes if compile else codes.new_empty(0), None, int8)
    if compile:
        return Matrix("rows", weight.contiguous(), bias)
    if weight.device.type != "cpu":
        return Matrix("rows", weight, bias)
    blocked = torch.backends.mkldnn.is_available() and (
        torch.ops.mkldnn._is_mkldnn_bf16_supported()
        if weight.dtype == torch.bfloat16
        else weight.dtype == torch.float32 and not _prefers_mkl()
    )
    if blocked:
        return Matrix("blocks", torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1), bias)
    transposed = weight.t().clone(memory_format=torch.contiguous_format)
    return Matrix("columns", transposed, bias)


def _prefers_mkl() -> bool:
    # On a Xeon GPT-2's 49 products of one row take 15.8 ms with MKL and 19.4 ms with oneDNN; on an EPYC oneDNN is
    # faster. torch 2.9 has no get_capabilities.
    name = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", "")
    return torch.backends.mkl.is_available() and "Intel" in name


def whole_numbers(weight: torch.Tensor, bias: torch.Tensor, compile: bool = False) -> tuple[torch.Tensor, Int8]:
    """Round W (out, in) to integers, in steps of 1 / 127 of each output's largest weight."""
    scales = torch.maximum(weight.amax(1), weight.amin(1).neg_()).float().clamp_(min=1e-12) / 127  # (out,)
    codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
    for part, scale, target in zip(
        weight.split(256), scales.split(256), codes.split(256), strict=True
    ):  # parts fit into the processor's cache
        target.copy_((part / scale[:, None]).round_())
    top = 255 if torch.cpu._is_vnni_supported() else 127  # without VNNI two products are added in 16 bits
    return codes, Int8(
        fbgemm_packed(codes, scales, bias) if has_fbgemm() and not compile else None,
        torch.ops.onednn.qlinear_prepack(codes, None),
        scales,
        codes.sum(1, dtype=torch.int32) * scales,
        torch.zeros(len(codes), dtype=torch.int32),
        bias,
        top,
    )


def has_fbgemm() -> bool:
    """Return whether this torch can multiply integers with FBGEMM."""
    has_operations = hasattr(torch, "_make_per_channel_quantized_tensor") and hasattr(
        torch.ops.quantized, "linear_dynamic"
    )
    return has_operations and torch.backends.quantized.engine in ("x86", "fbgemm")


def fbgemm_packed(codes: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor) -> Packed:
    """Pack integers (out, in), their scales and b (out,) for FBGEMM."""
    zeros = torch.zeros(len(codes), dtype=torch.long)
    weight = torch._make_per_channel_quantized_tensor(  # pyright: ignore[reportPrivateImportUsage]
        codes, scales.double(), zeros, 0
    )
    return torch.ops.quantized.linear_prepack(weight, bias)


# --- Products, also compiled by TorchScript (decoder.py): only plain tensor operations ----------------------------


def multiply(x: torch.Tensor, matrix: Matrix) -> torch.Tensor:
    """Return x W^T + b, (N, out), for x (N, in)."""
    int8, weight, bias = matrix.int8, matrix.weight, matrix.bias
    if int8 is not None:
        return multiply_int8(x.float(), int8).to(x.dtype)
    if matrix.layout == "columns":
        return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)
    if matrix.layout == "blocks":
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def multiply_int8(x: torch.Tensor, matrix: Int8, many: int = MIN_ONEDNN_ROWS) -> torch.Tensor:
    """Return the same with integers; each row of x is rounded by its own range, independent of other rows."""
    packed, bias, reduce_range = matrix.packed, matrix.bias, matrix.top < 255
    if packed is not None and len(x) == 1:
        return torch.ops.quantized.linear_dynamic(x, packed, reduce_range)  # this operation rounds x
    codes, step, zero = round_rows(x, matrix.top)
    if packed is not None and len(x) < many:
        # This operation rounds all rows by their common range. One more row makes it 0 to top, which changes no code.
        spans = torch.full_like(codes[:1], matrix.top)
        y = torch.ops.quantized.linear_dynamic(torch.cat([codes, spans]), packed, reduce_range)[:-1].sub_(bias)
    else:
        y = torch.ops.onednn.qlinear_pointwise(
            codes.to(torch.uint8),
            1.0,
            0,
            matrix.blocks,
            matrix.scales,
            matrix.zeros,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
    return torch.addcmul(bias, y.addcmul_(zero, matrix.sums, value=-1), step)


def round_rows(x: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Round x (N, in): return codes from 0 to top as floats, and for each row, (N, 1), the step and the code of 0.

    x is approximately (codes - zero) * step. The codes equal those of torch's dynamic quantization of each single row
    (ATen's ChooseQuantizationParams, with its smallest step), so one row and many rows give the same integers.
    """
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)  # torch.aminmax takes up to 6 times as long
    low, high = low.clamp_(max=0).double(), high.clamp_(min=0).double()
    step = (high - low).div_(top)
    step = torch.where(step < 1e-38, 0.1, step)  # a row of zeros
    zero = (low / step).round_().neg_().float()
    step = step.clamp_(min=6.1e-5).float()
    return torch.addcmul(zero, x, 1 / step).round_().clamp_(0, top), step, zero


__all__ = ["MATMUL_KINDS", "Int8", "Matrix", "lay_out", "multiply"]
