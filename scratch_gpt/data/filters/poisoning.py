"""Score rows by their gradients to find planted (poisoned) ones.

Rows that were planted to teach a model one behavior (a trigger and its continuation) have similar gradients. There are
two scores; low scores are suspicious:

    "mean"       the cosine of a row's gradient with the mean gradient of all rows
    "neighbors"  minus the mean cosine with the few most similar gradients, after subtracting the mean gradient

"mean" performed like chance when measured (tests/benchmarks/cleaning.json). Rows with the same planted
continuation do have similar gradients, so "neighbors" is the default. Duplicates and rows of one template are similar
too: remove duplicates first, and read the listed rows before removing any.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any, Literal

import numpy as np
import torch
from torch import nn


ROW_BLOCK = 1024  # rows compared with all others at a time


def gradient_scores(
    model: nn.Module,
    objective: Any,
    rows: Sequence[Any],
    collate: Callable[[list[Any]], dict[str, torch.Tensor]],
    parameters: Callable[[str], bool],
    *,
    against: Literal["neighbors", "mean"] = "neighbors",
    batch_size: int = 16,
) -> np.ndarray:
    """Return a score for each row, (rows,) float64 in [-1, 1]; low = suspicious. The model is not changed.

    Args:
        objective: as in train/objectives.py; the loss is the sum of its terms, each divided by its count.
        rows: indexable and sized; `collate` makes a batch of a list of them.
        parameters: return whether to use the gradient of the parameter with a name; the last block and the head are
            enough.
        against: "mean" takes two passes, first in batches of `batch_size`, then row by row, and stores nothing per
            row; "neighbors" takes one pass, stores 4 KB per row, and compares every pair of rows.

    Raises:
        ValueError: the rows are empty, no trainable parameter is chosen, or `against` is unknown.
    """
    if against not in ("neighbors", "mean"):
        raise ValueError(f"against must be 'neighbors' or 'mean', not {against!r}.")
    if against == "neighbors":
        return neighbor_scores(gradient_sketches(model, objective, rows, collate, parameters))
    with _gradients(model, objective, rows, collate, parameters) as gradient:
        mean = torch.zeros(())
        for start in range(0, len(rows), batch_size):
            batch = [rows[k] for k in range(start, min(start + batch_size, len(rows)))]
            mean = mean + gradient(batch) * (len(batch) / len(rows))
        gradients = (gradient([rows[k]]) for k in range(len(rows)))
        return np.array(
            [nn.functional.cosine_similarity(row_gradient, mean, dim=0).item() for row_gradient in gradients]
        )


def gradient_sketches(
    model: nn.Module,
    objective: Any,
    rows: Sequence[Any],
    collate: Callable[[list[Any]], dict[str, torch.Tensor]],
    parameters: Callable[[str], bool],
    *,
    size: int = 1024,
    seed: int = 0,
) -> np.ndarray:
    """Return each row's gradient as a count sketch (Charikar et al. 2002), (rows, size) float32.

    Every number of the gradient is added, with a random sign, to one of `size` sums. The product of two sketches has
    the product of the gradients as its expected value.

    Raises:
        ValueError: as `gradient_scores`.
    """
    sketches = np.zeros((len(rows), size), dtype=np.float32)
    draw = torch.Generator().manual_seed(seed)
    sums = signs = None
    with _gradients(model, objective, rows, collate, parameters) as gradient:
        for k in range(len(rows)):
            row_gradient = gradient([rows[k]]).float().cpu()
            if sums is None or signs is None:
                sums = torch.randint(size, row_gradient.shape, generator=draw)
                signs = torch.randint(2, row_gradient.shape, generator=draw) * 2.0 - 1
            torch.from_numpy(sketches[k]).index_add_(0, sums, row_gradient * signs)
    return sketches


def neighbor_scores(sketches: np.ndarray, *, neighbors: int = 5) -> np.ndarray:
    """Return minus the mean cosine of each sketch with its `neighbors` nearest ones, after subtracting the mean.

    Shapes: sketches (n, size), result (n,).
    """
    centered = sketches - sketches.mean(axis=0)
    centered /= np.maximum(np.linalg.norm(centered, axis=1, keepdims=True), 1e-12)
    k = min(neighbors, len(centered) - 1)
    scores = np.zeros(len(centered))
    for start in range(0, len(centered) if k else 0, ROW_BLOCK):
        cosines = centered[start : start + ROW_BLOCK] @ centered.T
        diagonal = np.arange(len(cosines))
        cosines[diagonal, start + diagonal] = -np.inf
        scores[start : start + ROW_BLOCK] = -np.partition(cosines, -k, axis=1)[:, -k:].mean(axis=1)
    return scores


def outliers(scores: np.ndarray, share: float = 0.05) -> np.ndarray:
    """Return the rows with the lowest scores, lowest first: `share` of them, rounded up; (k,) int64.

    Raises:
        ValueError: the share is outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, not {share}.")
    return np.argsort(scores, kind="stable")[: int(np.ceil(share * len(scores)))]


@contextmanager
def _gradients(
    model: nn.Module,
    objective: Any,
    rows: Sequence[Any],
    collate: Callable[[list[Any]], dict[str, torch.Tensor]],
    parameters: Callable[[str], bool],
) -> Iterator[Callable[[list[Any]], torch.Tensor]]:
    # Yield a function that returns the flat gradient of some rows' loss in eval mode; .grad does not change.
    weights = [p for name, p in model.named_parameters() if parameters(name) and p.requires_grad]
    if not weights or not len(rows):
        raise ValueError(
            f"There are {len(rows)} rows and {len(weights)} chosen trainable parameters; both must be at least 1."
        )

    def gradient(batch_rows: list[Any]) -> torch.Tensor:
        batch = {key: value.to(weights[0].device) for key, value in collate(batch_rows).items()}
        sums, counts = objective.sums(model, batch), objective.counts(batch)
        loss = reduce(torch.add, [sums[name] / counts[name].clamp(min=1) for name in sums])
        parts = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])

    was_training = model.training
    model.eval()
    try:
        yield gradient
    finally:
        model.train(was_training)


__all__ = ["gradient_scores", "gradient_sketches", "neighbor_scores", "outliers"]
