"""Test the products of a step: layouts do not change them, and int8 has only rounding error."""

import pytest
import torch
import torch.nn.functional as F
from decoded import max_difference

from scratch_gpt.generation.matmul import Matrix, has_fbgemm, lay_out, multiply, multiply_int8, round_rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_matrix_layout_does_not_change_products(dtype):
    weight, bias, x = torch.randn(48, 32), torch.randn(48), torch.randn(5, 32)
    weight, bias, x = (t.to(dtype) for t in (weight, bias, x))
    plain = F.linear(x.float(), weight.float())
    near = 1e-5 if dtype == torch.float32 else 0.1
    turned = weight.t().contiguous()
    for laid in (lay_out(weight, None), Matrix("rows", weight, None), Matrix("columns", turned, None)):
        assert max_difference(multiply(x, laid).float(), plain) < near
        assert max_difference(multiply(x, laid._replace(bias=bias)).float(), plain + bias) < near


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_layout_does_not_change_the_weights(quantize):
    weight, x = torch.randn(32, 48).t(), torch.randn(5, 32)  # transposed
    laid = lay_out(weight, None, quantize)
    before = multiply(x, laid)
    weight.zero_()
    assert torch.equal(multiply(x, laid), before) and before.any()


def test_int8_weights_do_not_keep_the_original_matrix():
    assert lay_out(torch.randn(48, 32), None, "int8").weight.untyped_storage().nbytes() == 0


def rows_of_mixed_scale() -> torch.Tensor:
    x = torch.randn(20, 32)
    x[1] *= 1000  # a neighbor with large values
    x[2] = 0
    x[3], x[4] = x[3].abs(), -x[4].abs()
    return x


@pytest.mark.parametrize("turned", [False, True])
def test_int8_products_have_the_error_of_rounding_and_rows_are_independent(turned):
    weight, bias, x = torch.randn(48, 32), torch.randn(48), rows_of_mixed_scale()
    weight = weight.t().contiguous().t() if turned else weight
    laid = lay_out(weight, bias, "int8")
    together = multiply(x, laid)
    plain = F.linear(x, weight, bias)
    # Each factor has an error of at most half a step: 1/254 of its row's maximum (1/126 if sums have 16 bits).
    bound = 32 * 2 / 126 * weight.abs().amax(1) * x.abs().amax(1, keepdim=True) + 1e-5
    assert ((together - plain).abs() <= bound).all() and torch.equal(together[2], bias)
    assert ((together - plain).norm(dim=1) < 0.02 * (plain - bias).norm(dim=1) + 1e-5).all()
    for fewer, more in ((2, 7), (16, 20)):  # one kernel, other neighbors: bitwise equal
        for n in range(more - fewer + 1):
            of = multiply(x[:more], laid)[n : n + fewer]
            assert torch.equal(multiply(x[n : n + fewer], laid), of)
    for n in (1, 2, 7):  # other kernels: equal integers, and rounding of fp32
        for some, known in zip(x.split(n), together.split(n), strict=True):
            assert ((multiply(some, laid) - known).norm(dim=1) <= 1e-5 * known.norm(dim=1)).all()


@pytest.mark.parametrize("top", [255, 127])
def test_rows_are_rounded_as_torch_rounds_each_separately(top):
    x = torch.cat([rows_of_mixed_scale(), 1e-4 * torch.randn(1, 32)])
    codes, step, zero = round_rows(x, top)
    assert codes.min() == 0 and codes.max() == top
    for row, found in zip(x, zip(codes, step, zero, strict=True), strict=True):
        known = torch.quantize_per_tensor_dynamic(row, torch.quint8, top < 255)
        assert torch.equal(found[0], known.int_repr().float()) and found[2] == known.q_zero_point()
        assert found[1].item() == pytest.approx(known.q_scale(), rel=1e-6)


@pytest.mark.skipif(not has_fbgemm(), reason="this torch has no FBGEMM, so all rows are multiplied without it")
def test_few_rows_are_also_multiplied_without_fbgemm():
    weight, bias, x = torch.randn(48, 32), torch.randn(48), rows_of_mixed_scale()
    int8 = lay_out(weight, bias, "int8").int8
    for some in x.split(3):
        without = multiply_int8(some, int8._replace(packed=None))
        assert ((multiply_int8(some, int8) - without).norm(dim=1) <= 1e-5 * without.norm(dim=1)).all()
