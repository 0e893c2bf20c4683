"""Helpers for the tests of adapters: perturbed parameters, logits and their comparison."""

import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from tiny import some_ids

from scratch_gpt import ScratchGPTForCausalLM, ScratchGPTForSequenceClassification


IDS = some_ids()


def perturbed(model: torch.nn.Module) -> torch.nn.Module:
    """Add noise to the trainable parameters, as if some steps had been trained; return the model in eval mode."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


@torch.no_grad()
def logits(model: torch.nn.Module, ids: torch.Tensor = IDS, **more) -> torch.Tensor:
    return model(input_ids=ids, **more).logits


def assert_close(one: torch.Tensor, other: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, atol=atol, rtol=0)


CLASSES = {
    ScratchGPTForCausalLM: AutoPeftModelForCausalLM,
    ScratchGPTForSequenceClassification: AutoPeftModelForSequenceClassification,
}
