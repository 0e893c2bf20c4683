"""Test the objective of classification: independent of how a batch is split, and equal to torch's mean."""

import math
from functools import partial

import pytest
import torch
from labeled import LabeledTexts, classifier
from tiny_run import run as train_run
from torch.testing import assert_close

from scratch_gpt.data.rows.collate import collate_labeled
from scratch_gpt.evaluation.classification import classification_metrics, sum_batches
from scratch_gpt.evaluation.losses import mean_losses
from scratch_gpt.train.batches import BatchLayout, Steps, epoch_order, evaluation_batches
from scratch_gpt.train.objectives import classification


WEIGHTS = [0.5, 1.0, 4.0]
KINDS = {"plain": (None, False), "weighted": (WEIGHTS, False), "several": (None, True)}


def gradients(objective, rows, share: tuple[int, int, int], step: int) -> torch.Tensor:
    """Return the gradient of a step split into these shares: the sums of all, divided once by the total count."""
    batch_size, accumulation, processes = share
    shares = [BatchLayout(batch_size, accumulation, processes, rank) for rank in range(processes)]
    parts = [part for each in shares for part in Steps(rows, collate_labeled, each, 5, len(rows))[step].micro_batches]
    count = sum(objective.counts(batch)["loss"] * counted for batch, counted in parts)
    model = classifier().train()
    for batch, counted in parts:
        (objective.sums(model, batch)["loss"] * counted / count).backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [(4, 2, 1), (3, 3, 1), (4, 1, 2), (2, 2, 2), (1, 3, 3)])
def test_the_gradient_does_not_depend_on_how_a_batch_is_split(kind, share):
    weights, several = KINDS[kind]
    objective, rows = classification(weights), LabeledTexts(several)
    size = math.prod(share)
    for step in (0, len(rows) // size):  # the last batch is not full
        whole = gradients(objective, rows, (size, 1, 1), step)
        assert_close(gradients(objective, rows, share, step), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loop_gives_the_same_weights_and_logs_the_same_loss(kind, tmp_path):
    weights, several = KINDS[kind]
    options = {"rows": LabeledTexts(several), "collate": collate_labeled, "objective": classification(weights)}
    runs = [
        train_run(tmp_path / name, model=classifier().train(), sgd=True, **options, **cut)
        for name, cut in (("a", {"batch_size": 6}), ("b", {"batch_size": 2, "accumulation_steps": 3}))
    ]
    for name, value in runs[0][0].items():
        assert_close(runs[1][0][name], value, atol=1e-6, rtol=0)
    for one, other in zip(runs[0][2], runs[1][2], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5) and one["tokens"] == other["tokens"]
    rows = options["rows"]
    assert runs[0][1].tokens == sum(rows.lengths[k] for k in epoch_order(len(rows), 0, 0)[:18])


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_torchs_mean_over_all_rows(kind):
    weights, several = KINDS[kind]
    rows, model = LabeledTexts(several), classifier()
    batch = collate_labeled(rows.rows)
    with torch.no_grad():
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    if several:
        truth = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch["labels"])
    else:
        weight = None if weights is None else torch.tensor(weights)
        truth = torch.nn.functional.cross_entropy(logits, batch["labels"], weight=weight)
    for size in (1, 4, 21):
        batches = partial(evaluation_batches, rows, collate_labeled, BatchLayout(size))
        assert mean_losses(model, batches(), classification(weights))["loss"] == pytest.approx(truth.item(), abs=1e-5)
        metrics = classification_metrics(sum_batches(model, batches(), weights))
        assert metrics["loss"] == pytest.approx(truth.item(), abs=1e-5)
    own = model(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
    assert weights is not None or own.item() == pytest.approx(truth.item(), abs=1e-6)
