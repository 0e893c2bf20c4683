"""Compute losses on held-out batches, independent of the batch size, and perplexity and bits per byte from them."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from ..train.batches import Batch
from ..train.objectives import Objective


LossSums = dict[str, tuple[torch.Tensor | float, torch.Tensor | float]]  # name -> sum, count


@torch.no_grad()
def mean_losses(
    model: nn.Module,
    batches: Iterable[tuple[Batch, bool]],
    objective: Objective,
    reduce: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> dict[str, float]:
    """Return each term's sum over all batches divided once by its count; NaN without targets.

    Args:
        batches: (batch, counted) pairs; a batch with counted=False only keeps the processes in step.
        reduce: sums a tensor over several processes.
    """
    was_training = model.training
    model.eval()

    def read() -> Iterator[tuple[LossSums, bool]]:
        for batch, counted in batches:
            counts, sums = objective.counts(batch), objective.sums(model, batch)
            yield {name: (total, counts[name]) for name, total in sums.items()}, counted

    losses = means(read(), reduce)
    model.train(was_training)
    return losses


def means(
    read: Iterable[tuple[LossSums, bool]], reduce: Callable[[torch.Tensor], torch.Tensor] | None = None
) -> dict[str, float]:
    """Divide each name's total over the (sums, counted) pairs of all batches once by its count; NaN if that is 0."""
    totals: dict[str, torch.Tensor] = {}
    for sums, counted in read:
        for name, pair in sums.items():
            pair = torch.tensor([float(value) for value in pair], dtype=torch.float64) * counted
            totals[name] = totals[name] + pair if name in totals else pair
    reduced = {name: (pair if reduce is None else reduce(pair)).tolist() for name, pair in totals.items()}
    return {name: total / count if count else math.nan for name, (total, count) in reduced.items()}


@torch.no_grad()
def row_losses(
    model: nn.Module, rows: Iterable[Any], collate: Callable[[list], Batch], objective: Objective
) -> np.ndarray:
    """Return the mean loss of each row, (rows,) float64, in nats; NaN for a row without targets."""
    return np.array([mean_losses(model, [(collate([row]), True)], objective)["loss"] for row in rows])


def language_metrics(loss: float, tokens_per_byte: float) -> dict[str, float]:
    """Return {"loss", "perplexity", "bits_per_byte"} from a loss in nats per token.

    Bits per byte = loss / ln 2 * tokens / bytes, with the tokens (EOS counted) and UTF-8 bytes of the full split. It
    does not depend on the tokenizer, so it compares models with different tokenizers.

    Example:
        >>> metrics = language_metrics(loss=2.0, tokens_per_byte=0.25)
        >>> {name: round(value, 3) for name, value in metrics.items()}
        {'loss': 2.0, 'perplexity': 7.389, 'bits_per_byte': 0.721}
    """
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": loss / math.log(2) * tokens_per_byte,
    }


__all__ = ["LossSums", "language_metrics", "mean_losses", "means", "row_losses"]
