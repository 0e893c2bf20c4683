"""Test classification metrics: cases counted by hand, and sums over batches."""

import json
import math

import numpy as np
import pytest
import torch
from labeled import LabeledTexts, classifier
from torch.testing import assert_close

from scratch_gpt.data.rows.collate import collate_labeled
from scratch_gpt.evaluation.classification import (
    class_scores,
    classification_metrics,
    classification_sums,
    classification_tables,
    prediction_lines,
    sum_batches,
)
from scratch_gpt.train.batches import BatchLayout, evaluation_batches


def test_metrics_of_a_case_counted_by_hand():
    # true a a a b b c, predicted a a b b c c: TP, FP, FN per class = (2, 0, 1), (1, 1, 1), (1, 1, 0)
    chances = torch.tensor(
        [[0.9, 0.05, 0.05], [0.62, 0.28, 0.1], [0.3, 0.5, 0.2], [0.1, 0.8, 0.1], [0.17, 0.2, 0.63], [0.0, 0.01, 0.99]]
    )
    sums = classification_sums(chances.clamp(min=1e-9).log(), torch.tensor([0, 0, 0, 1, 1, 2]))
    assert sums["confusion"].tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    scores = class_scores(sums["confusion"])
    assert scores["precision"] == pytest.approx([1, 1 / 2, 1 / 2])
    assert scores["recall"] == pytest.approx([2 / 3, 1 / 2, 1])
    assert scores["f1"] == pytest.approx([4 / 5, 1 / 2, 2 / 3])
    metrics = classification_metrics(sums)
    assert metrics["accuracy"] == pytest.approx(4 / 6)
    assert metrics["macro_f1"] == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)
    loss = -sum(math.log(p) for p in (0.9, 0.62, 0.3, 0.8, 0.2, 0.99)) / 6
    assert metrics["loss"] == pytest.approx(loss, rel=1e-5)
    # bins of width 1/15: 0.62 and 0.63 (one correct) share a bin
    errors = [abs(0 - 0.5), abs(1 - 1.25), abs(1 - 0.8), abs(1 - 0.9), abs(1 - 0.99)]
    assert metrics["calibration_error"] == pytest.approx(sum(errors) / 6, abs=1e-6)
    tables = classification_tables(sums, ["a", "b", "c"])
    assert tables["f1"]["b"] == pytest.approx(1 / 2) and sum(b["count"] for b in tables["calibration"]) == 6


def test_metrics_with_several_labels_of_a_case_counted_by_hand():
    # predicted: [1 0], [1 1], [0 0]; true: [1 0], [0 1], [0 1]
    chances = torch.tensor([[0.91, 0.22], [0.72, 0.63], [0.11, 0.38]])
    sums = classification_sums(chances.logit(), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    assert sums["confusion"].tolist() == [[[1, 1], [0, 1]], [[1, 0], [1, 1]]]
    metrics = classification_metrics(sums)
    assert metrics["accuracy"] == pytest.approx(1 / 3)  # rows with all labels correct
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    # confidences 0.91 0.78 0.72 0.63 0.89 0.62, correct 1 1 0 1 1 0; 0.91 and 0.89 share a bin, as do 0.63 and 0.62
    errors = [abs(2 - 1.8), abs(1 - 0.78), abs(0 - 0.72), abs(1 - 1.25)]
    assert metrics["calibration_error"] == pytest.approx(sum(errors) / 6, abs=1e-6)


def test_a_class_without_rows_and_predictions_has_f1_zero_and_is_not_in_the_mean():
    assert class_scores(torch.tensor([[2.0, 0.0], [0.0, 0.0]]))["f1"] == [1.0, 0.0]
    sums = classification_sums(
        torch.tensor([[4.0, 0.0, 0.0], [0.0, 4.0, 0.0], [4.0, 0.0, 0.0]]), torch.tensor([0, 1, 1])
    )
    assert classification_metrics(sums)["macro_f1"] == pytest.approx(2 / 3)


WORDS = "caf\u00e9 \u2192 \u65e5\u672c \U0001f600"


def test_a_prediction_is_written_in_ascii_without_loss():
    (line,) = prediction_lines([WORDS], np.array([[0.25, 0.75]]), ["\u00f6", "\u65e5"], has_many=False)
    found = json.loads(line.encode("ascii"))
    assert found["text"] == WORDS and found["predicted"] == "\u65e5"


@pytest.mark.parametrize("several", [False, True])
def test_sums_add_over_batches_and_processes(several):
    model, rows = classifier(), LabeledTexts(several)
    whole = sum_batches(model, evaluation_batches(rows, collate_labeled, BatchLayout(21)))
    shares = [
        sum_batches(model, evaluation_batches(rows, collate_labeled, BatchLayout(4, 1, 2, rank))) for rank in (0, 1)
    ]
    for name, total in whole.items():
        assert_close(shares[0][name] + shares[1][name], total, atol=1e-5, rtol=0)
