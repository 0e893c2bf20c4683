"""Test mean losses: they do not depend on the batch size."""

import math

import pytest
import torch
from tiny import tiny_model
from tiny_run import COLLATE, UnevenRows

from scratch_gpt.data.rows.collate import collate_rows
from scratch_gpt.data.rows.windows import Windows
from scratch_gpt.evaluation.losses import language_metrics, mean_losses
from scratch_gpt.train.batches import BatchLayout, evaluation_batches
from scratch_gpt.train.objectives import causal_lm


def test_the_loss_of_a_text_does_not_depend_on_batch_size_or_how_windows_are_joined():
    stream = torch.randint(99, (203,), generator=torch.Generator().manual_seed(0)).numpy()
    windows = Windows(stream, 16, 8, overlap="context")

    def loss(batch_size):
        batches = evaluation_batches(windows, collate_rows, BatchLayout(batch_size))
        return mean_losses(tiny_model(), batches, causal_lm)["loss"]

    assert [loss(3), loss(7), loss(99)] == pytest.approx([loss(1)] * 3, rel=1e-6)
    assert sum(int((windows[k]["shift_labels"] != -100).sum()) for k in range(len(windows))) == 202


@pytest.mark.parametrize("batch_size", [1, 3, 7, 24])
def test_evaluation_does_not_depend_on_the_batch_size(batch_size):
    model, rows = tiny_model().train(), UnevenRows()
    loss = mean_losses(model, evaluation_batches(rows, COLLATE, BatchLayout(batch_size)), causal_lm)["loss"]
    batch = COLLATE(rows.rows)
    with torch.no_grad():
        logits = model(batch["input_ids"]).logits
    truth = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["shift_labels"].flatten())
    assert loss == pytest.approx(truth.item(), abs=1e-5)
    assert model.training


def test_bits_per_byte_of_guessing_bytes_is_eight():
    assert language_metrics(math.log(256), tokens_per_byte=1.0) == pytest.approx(
        {"loss": math.log(256), "perplexity": 256, "bits_per_byte": 8}
    )
