"""Rows and a model -> how far each row's gradient points the way of all of them; the rows that point elsewhere.

A row that was planted to teach a model one thing (a trigger and what is to follow it) pulls the weights in a direction
that the other rows do not share: its gradient has a low cosine with the mean gradient. It is a ranking to look at, not
a verdict: rare honest rows rank low too, and tests/benchmarks/cleaning.json says what it finds and what it misses.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn


def gradient_scores(
    model: nn.Module,
    objective: Any,
    rows: Sequence[Any],
    collate: Callable[[list], dict[str, torch.Tensor]],
    parameters: Callable[[str], bool],
    *,
    batch_size: int = 16,
) -> np.ndarray:
    """Cosine of each row's gradient with the mean gradient of all rows, (rows,) float64 in [-1, 1]; low = suspicious.

    Two passes, so what is held does not grow with the rows: the mean over batches, then each row by itself. The model
    scores in eval mode, no gradient is left behind, and its mode is put back.

    Args:
        objective: as objectives.py; the loss is the sum of its terms, each divided by its count.
        rows: indexable and sized; `collate` makes a batch of a list of them.
        parameters: name -> whether that parameter's gradient counts; the last block and the head are enough.

    Raises:
        ValueError: no rows, or no parameter that trains is chosen.
    """
    chosen = [p for name, p in model.named_parameters() if parameters(name) and p.requires_grad]
    if not chosen or not len(rows):
        raise ValueError(
            f"{len(rows)} rows and {len(chosen)} chosen parameters that train; gradients need at least one of each."
        )
    device = chosen[0].device
    was_training = model.training
    model.eval()

    def gradient(some: list) -> torch.Tensor:
        batch = {key: value.to(device) for key, value in collate(some).items()}
        sums, counts = objective.sums(model, batch), objective.counts(batch)
        loss = sum(sums[name] / counts[name].clamp(min=1) for name in sums)
        parts = torch.autograd.grad(loss, chosen, allow_unused=True)
        return torch.cat(
            [(p.new_zeros(p.shape) if g is None else g).flatten() for p, g in zip(chosen, parts, strict=True)]
        )

    try:
        mean = torch.zeros(sum(p.numel() for p in chosen), device=device)
        for start in range(0, len(rows), batch_size):
            some = [rows[k] for k in range(start, min(start + batch_size, len(rows)))]
            mean += gradient(some) * (len(some) / len(rows))
        scores = [nn.functional.cosine_similarity(gradient([rows[k]]), mean, dim=0).item() for k in range(len(rows))]
    finally:
        model.train(was_training)
    return np.array(scores)


def outliers(scores: np.ndarray, share: float = 0.05) -> np.ndarray:
    """The rows with the lowest scores, lowest first: `share` of them, rounded up; (k,) int64.

    Raises:
        ValueError: a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; it has to be above 0 and at most 1.")
    return np.argsort(scores, kind="stable")[: int(np.ceil(share * len(scores)))]


__all__ = ["gradient_scores", "outliers"]
