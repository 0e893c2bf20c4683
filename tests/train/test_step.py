"""Test a step: it does not depend on how a batch is split."""

import pytest
import torch
from tiny import tiny_model
from tiny_run import COLLATE, UnevenRows, run

from scratch_gpt.train.batches import epoch_order


def assert_close(a, b, tolerance):
    for name in a:
        assert (a[name] - b[name]).abs().max() < tolerance, name


@pytest.mark.parametrize("cut", [(4, 2), (2, 4), (1, 8), (3, 3)])
def test_weights_do_not_depend_on_how_a_batch_is_split(cut, tmp_path):
    batch, accumulation = cut
    whole = run(tmp_path / "a", batch_size=batch * accumulation, sgd=True)
    parts = run(tmp_path / "b", batch_size=batch, accumulation_steps=accumulation, sgd=True)
    assert_close(whole[0], parts[0], tolerance=1e-6)
    for one, other in zip(whole[2], parts[2], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
        assert one["grad_norm"] == pytest.approx(other["grad_norm"], abs=1e-4)
        assert one["tokens"] == other["tokens"]


def test_the_logged_loss_is_the_mean_over_target_tokens(tmp_path):
    model, rows = tiny_model(), UnevenRows()
    indices = epoch_order(len(rows), 0, 0)[:8]
    batch = COLLATE([rows[i] for i in indices])
    logits = model(batch["input_ids"]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["shift_labels"].flatten())
    metrics = run(tmp_path, steps=1)[2]
    assert metrics[0]["loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert metrics[0]["tokens"] == (batch["shift_labels"] != -100).sum()
