"""A classifier and batches -> sums that add over batches and processes -> accuracy, F1, confusion, calibration.

B batch, C classes. With several labels a row, each class is a question of its own: yes or no.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..train.objectives import Batch, classification_loss


BINS = 15  # of confidence, as in Guo et al. 2017
Sums = dict[str, torch.Tensor]


def probabilities_of(logits: torch.Tensor, has_many: bool) -> torch.Tensor:
    """Logits (B, C) -> probabilities: of one class each, summing to 1, or of each class alone."""
    return logits.float().sigmoid() if has_many else logits.float().softmax(-1)


@torch.no_grad()
def classify_batches(model: nn.Module, batches: Iterable[Batch], has_many: bool) -> np.ndarray:
    """The probabilities of each row, in order: (rows, C)."""
    was_training = model.training
    model.eval()
    found = []
    for batch in batches:
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        found.append(probabilities_of(logits, has_many).cpu().numpy())
    model.train(was_training)
    return np.concatenate(found)


def classification_sums(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None) -> Sums:
    """What the metrics of these rows and of others together are made of, float64; they add.

    Returns:
        "loss" (2,): sum and count. "right" (2,): rows that are wholly right, rows. "confusion": (C, C) rows of true
        class i called j; or with several labels (C, 2, 2), for each class. "bins" (BINS, 3): decisions of each
        confidence, the sum of their confidences, how many were right.
    """
    logits, labels, C = logits.float().cpu(), labels.cpu(), logits.shape[-1]
    has_many = labels.dim() == 2
    probabilities = probabilities_of(logits, has_many).double()
    if has_many:
        truth, called = labels.long(), (probabilities > 0.5).long()  # (B, C)
        confidence, right = torch.where(called == 1, probabilities, 1 - probabilities), called == truth
        cells = (4 * torch.arange(C) + 2 * truth + called).flatten()
        confusion = torch.bincount(cells, minlength=4 * C).view(C, 2, 2)
        row_right = right.all(-1)
    else:
        confidence, called = probabilities.max(-1)  # (B,)
        row_right = right = called == labels
        confusion = torch.bincount(C * labels + called, minlength=C * C).view(C, C)
    bins = (confidence.flatten() * BINS).ceil().long().clamp(1, BINS) - 1  # each bin is open below, closed above
    parts = (torch.ones_like(confidence), confidence, right.double())
    table = [torch.bincount(bins, part.flatten(), minlength=BINS) for part in parts]
    return {
        "loss": torch.stack([part.double() for part in classification_loss(logits, labels, weights)]),
        "right": torch.tensor([float(row_right.sum()), len(labels)], dtype=torch.float64),
        "confusion": confusion.double(),
        "bins": torch.stack(table, -1).double(),
    }


@torch.no_grad()
def sum_batches(
    model: nn.Module,
    batches: Iterable[tuple[Batch, bool]],
    weights: Sequence[float] | None = None,
    reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Sums:
    """`classification_sums` of all batches together. `batches` and `reduce` as for evaluation.mean_losses."""
    was_training = model.training
    model.eval()
    weights = None if weights is None else torch.tensor(weights)
    totals: Sums = {}
    for batch, counted in batches:
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        for name, part in classification_sums(logits, batch["labels"], weights).items():
            totals[name] = totals.get(name, 0.0) + part * counted
    model.train(was_training)
    return totals if reduce is None else {name: reduce(total).cpu() for name, total in totals.items()}


def classification_metrics(sums: Sums) -> dict[str, float]:
    """Sums -> {"loss", "accuracy", "macro_f1", "calibration_error"}.

    F1 of a class = 2 TP / (2 TP + FP + FN); macro is the plain mean over the classes that are there or are called.
    Accuracy with several labels counts the rows that are right in every one. The calibration error is the mean over
    decisions of |accuracy - confidence| of their bin (Guo et al. 2017, "On Calibration of Modern Neural Networks").
    """
    loss, count = sums["loss"].tolist()
    right, rows = sums["right"].tolist()
    decisions, confidence, hits = sums["bins"].unbind(-1)
    total = float(decisions.sum())
    _, called, there = _counts(sums["confusion"])
    f1 = [score for score, n in zip(class_scores(sums["confusion"])["f1"], called + there, strict=True) if n]
    return {
        "loss": loss / count if count else math.nan,
        "accuracy": right / rows if rows else math.nan,
        "macro_f1": float(np.mean(f1)) if f1 else math.nan,
        "calibration_error": float((hits - confidence).abs().sum()) / total if total else math.nan,
    }


def class_scores(confusion: torch.Tensor) -> dict[str, list[float]]:
    """Confusion (C, C), or (C, 2, 2) of several labels -> "precision", "recall" and "f1" of each class, 0 of none."""
    hits, called, there = _counts(confusion)
    return {
        "precision": (hits / called.clamp(min=1)).tolist(),
        "recall": (hits / there.clamp(min=1)).tolist(),
        "f1": (2 * hits / (called + there).clamp(min=1)).tolist(),
    }


def _counts(confusion: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    # Of each class: the rows that are called it and are it, that are called it, that are it.
    if confusion.dim() == 3:
        return confusion[:, 1, 1], confusion[:, :, 1].sum(1), confusion[:, 1].sum(1)
    return confusion.diag(), confusion.sum(0), confusion.sum(1)


def classification_tables(sums: Sums, names: Sequence[str]) -> dict[str, Any]:
    """Sums -> what is no single number: each class' scores, the confusion matrix, the calibration bins."""
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
    """One JSON object a text: {"text", "label" where it is known, "predicted", "probabilities": {name: p}}."""
    for n, (text, row) in enumerate(zip(texts, probabilities, strict=True)):
        called = [names[i] for i in np.flatnonzero(row > 0.5)] if has_many else names[int(row.argmax())]
        known = {} if labels is None else {"label": sorted(labels[n]) if has_many else labels[n]}
        chances = {name: round(float(p), 6) for name, p in zip(names, row, strict=True)}
        yield json.dumps({"text": text, **known, "predicted": called, "probabilities": chances}) + "\n"


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
