"""Test quantization: close to the original, with gradients, and merged like any other."""

import pytest
import torch
from adapted import assert_close, logits, perturbed
from tiny import tiny_model

from scratch_gpt.finetuning.lora import add_lora, merged_state
from scratch_gpt.finetuning.quantization import QuantizedLinear
from scratch_gpt.finetuning.trainable import count_parameters


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.01), ("nf4", 0.15)])
def test_a_quantized_matrix_is_close_to_the_original_and_passes_gradients(kind, error):
    linear, x = torch.nn.Linear(64, 48), torch.randn(5, 64, requires_grad=True)
    layer = QuantizedLinear(linear, kind)
    assert ((layer.weight - linear.weight).norm() / linear.weight.norm()) < error
    layer(x).square().sum().backward()
    got, x.grad = x.grad, None
    torch.nn.functional.linear(x, layer.weight, linear.bias).square().sum().backward()
    assert_close(got, x.grad)
    size = sum(tensor.numel() * tensor.element_size() for tensor in (layer.codes, layer.scales))
    assert size <= {"int8": 64 * 48 + 4 * 48, "nf4": 64 * 48 // 2 + 4 * 48}[kind]


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_lora_on_a_quantized_base_is_merged_like_any_other(kind):
    model = tiny_model()
    total = count_parameters(model)[1]
    add_lora(model, quantize=kind, rank=4, targets="attention")
    trained, all_of_it = count_parameters(model)
    assert all_of_it - trained == total
    merged = tiny_model(seed=1)
    merged.load_state_dict(merged_state(perturbed(model)))
    assert_close(logits(merged), logits(model))
