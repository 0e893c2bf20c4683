"""Evaluate a classifier: compute sums over batches and processes, then accuracy, F1, confusion and calibration.

B batch, C classes. With several labels per row, each class is a separate yes-or-no decision.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..train.batches import Batch
from ..train.objectives import classification_loss


BINS = 15  # of confidence, as in Guo et al. 2017
ClassificationSums = dict[str, torch.Tensor]


def probabilities_of(logits: torch.Tensor, has_many: bool) -> torch.Tensor:
    """Return the probabilities of logits (B, C): over the classes, summing to 1, or of each class separately."""
    return logits.float().sigmoid() if has_many else logits.float().softmax(-1)


@torch.no_grad()
def classify_batches(model: nn.Module, batches: Iterable[Batch], has_many: bool) -> np.ndarray:
    """Return the probabilities of each row, in order: (rows, C)."""
    was_training = model.training
    model.eval()
    parts = []
    for batch in batches:
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        parts.append(probabilities_of(logits, has_many).cpu().numpy())
    model.train(was_training)
    return np.concatenate(parts)


def classification_sums(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
) -> ClassificationSums:
    """Return the float64 sums from which the metrics are computed; the sums of several batches can be added.

    Returns:
        "loss" (2,): sum and count. "right" (2,): correct rows, rows. "confusion": (C, C), rows of true class i that
        are predicted as j; or with several labels (C, 2, 2), one table per class. "bins" (BINS, 3): for each bin of
        confidence the number of decisions, the sum of their confidences, the number of correct ones.
    """
    logits, labels, C = logits.float().cpu(), labels.cpu(), logits.shape[-1]
    has_many = labels.dim() == 2
    probabilities = probabilities_of(logits, has_many).double()
    if has_many:
        truth, predicted = labels.long(), (probabilities > 0.5).long()  # (B, C)
        confidence, correct = torch.where(predicted == 1, probabilities, 1 - probabilities), predicted == truth
        cells = (4 * torch.arange(C) + 2 * truth + predicted).flatten()
        confusion = torch.bincount(cells, minlength=4 * C).view(C, 2, 2)
        row_correct = correct.all(-1)
    else:
        confidence, predicted = probabilities.max(-1)  # (B,)
        row_correct = correct = predicted == labels
        confusion = torch.bincount(C * labels + predicted, minlength=C * C).view(C, C)
    bins = (confidence.flatten() * BINS).ceil().long().clamp(1, BINS) - 1  # each bin is open below, closed above
    parts = (torch.ones_like(confidence), confidence, correct.double())
    table = [torch.bincount(bins, part.flatten(), minlength=BINS) for part in parts]
    return {
        "loss": torch.stack([part.double() for part in classification_loss(logits, labels, weights)]),
        "right": torch.tensor([float(row_correct.sum()), len(labels)], dtype=torch.float64),
        "confusion": confusion.double(),
        "bins": torch.stack(table, -1).double(),
    }


@torch.no_grad()
def sum_batches(
    model: nn.Module,
    batches: Iterable[tuple[Batch, bool]],
    weights: Sequence[float] | None = None,
    reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> ClassificationSums:
    """Add `classification_sums` over all batches. `batches` and `reduce` as for losses.mean_losses."""
    was_training = model.training
    model.eval()
    class_weights = None if weights is None else torch.tensor(weights)
    totals: ClassificationSums = {}
    for batch, counted in batches:
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        for name, part in classification_sums(logits, batch["labels"], class_weights).items():
            totals[name] = totals.get(name, 0.0) + part * counted
    model.train(was_training)
    return totals if reduce is None else {name: reduce(total).cpu() for name, total in totals.items()}


def classification_metrics(sums: ClassificationSums) -> dict[str, float]:
    """Return {"loss", "accuracy", "macro_f1", "calibration_error"}.

    F1 of a class = 2 TP / (2 TP + FP + FN); macro is the plain mean over the classes that occur or are predicted.
    With several labels, accuracy counts the rows with every label correct. The calibration error is the mean over all
    decisions of |accuracy - confidence| of their bin (Guo et al. 2017, "On Calibration of Modern Neural Networks").
    """
    loss, count = sums["loss"].tolist()
    correct, rows = sums["right"].tolist()
    decisions, confidence, hits = sums["bins"].unbind(-1)
    total = float(decisions.sum())
    _, predicted, actual = _counts(sums["confusion"])
    f1 = [score for score, n in zip(class_scores(sums["confusion"])["f1"], predicted + actual, strict=True) if n]
    return {
        "loss": loss / count if count else math.nan,
        "accuracy": correct / rows if rows else math.nan,
        "macro_f1": float(np.mean(f1)) if f1 else math.nan,
        "calibration_error": float((hits - confidence).abs().sum()) / total if total else math.nan,
    }


def class_scores(confusion: torch.Tensor) -> dict[str, list[float]]:
    """Return "precision", "recall" and "f1" of each class, 0 if undefined, from a confusion (C, C) or (C, 2, 2)."""
    hits, predicted, actual = _counts(confusion)
    return {
        "precision": (hits / predicted.clamp(min=1)).tolist(),
        "recall": (hits / actual.clamp(min=1)).tolist(),
        "f1": (2 * hits / (predicted + actual).clamp(min=1)).tolist(),
    }


def _counts(confusion: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # Return for each class: rows predicted as it and correct, rows predicted as it, rows of it.
    if confusion.dim() == 3:
        return confusion[:, 1, 1], confusion[:, :, 1].sum(1), confusion[:, 1].sum(1)
    return confusion.diag(), confusion.sum(0), confusion.sum(1)


def classification_tables(sums: ClassificationSums, names: Sequence[str]) -> dict[str, Any]:
    """Return each class' scores, the confusion matrix, and the calibration bins."""
    scores = {name: dict(zip(names, values, strict=True)) for name, values in class_scores(sums["confusion"]).items()}
    return {
        "labels": list(names),
        "confusion_matrix": sums["confusion"].long().tolist(),
        **scores,
        "calibration": [
            {"count": int(n), "confidence": confidence / n, "accuracy": hits / n} if n else {"count": 0}
            for n, confidence, hits in sums["bins"].tolist()
        ],
    }


def prediction_lines(
    texts: Sequence[str],
    probabilities: np.ndarray,
    names: Sequence[str],
    has_many: bool,
    labels: Sequence[Any] | None = None,
) -> Iterator[str]:
    """Yield a JSON object for each text: {"text", "label" if given, "predicted", "probabilities": {name: p}}."""
    for n, (text, row) in enumerate(zip(texts, probabilities, strict=True)):
        predicted = [names[int(i)] for i in np.flatnonzero(row > 0.5)] if has_many else names[int(row.argmax())]
        label = {} if labels is None else {"label": sorted(labels[n]) if has_many else labels[n]}
        rounded = {name: round(float(p), 6) for name, p in zip(names, row, strict=True)}
        yield json.dumps({"text": text, **label, "predicted": predicted, "probabilities": rounded}) + "\n"


__all__ = [
    "class_scores",
    "classification_metrics",
    "classification_sums",
    "classification_tables",
    "classify_batches",
    "prediction_lines",
    "probabilities_of",
    "sum_batches",
]
