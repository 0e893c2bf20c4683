"""Test preference metrics: a difference below the precision is a tie."""

from contextlib import nullcontext

import pytest
import torch
from accelerate import Accelerator
from preference_batch import MIXED, B
from tiny import tiny_model

from scratch_gpt.evaluation.preferences import preference_metrics
from scratch_gpt.train.preference_losses import Preference, read_answers


@pytest.mark.parametrize(
    ("how", "accuracy"), [("fp32", 1.0), ("weights in bf16", 0.5), ("autocast", 0.5), ("prepared for bf16", 0.5)]
)
def test_a_difference_within_16_bit_rounding_is_a_tie(how, accuracy):
    model, batch = tiny_model(), MIXED()
    if how == "weights in bf16":
        model = model.to(torch.bfloat16)
    if how == "prepared for bf16":
        model = Accelerator(cpu=True, mixed_precision="bf16").prepare_model(model, evaluation_mode=True)
    with torch.autocast("cpu", torch.bfloat16) if how == "autocast" else nullcontext():
        with torch.no_grad():
            logps = read_answers(model, batch).logps
        batch["reference_logps"] = logps - torch.where(torch.arange(2 * B) < B, 0.008, -0.008)
        for beta in (0.05, 0.5):
            assert preference_metrics(model, [(batch, True)], Preference("dpo", beta))["accuracy"] == accuracy
        batch["reference_logps"] = logps - torch.where(torch.arange(2 * B) < B, 0.1, -0.1)
        assert preference_metrics(model, [(batch, True)], Preference("dpo", 0.1))["accuracy"] == 1
