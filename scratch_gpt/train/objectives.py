"""Define objectives: the summed loss and the number of targets of a batch.

An objective has two parts, because a sum is divided only once, by the count over all micro-batches and processes of a
step: `counts` reads the batches before any forward pass, `sums` runs the model. So the gradient does not depend on how
a global batch was split. A third part, `baselines`, computes means over the global batch that `sums` needs, such as
KTO's baseline.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .batches import Batch


class Objective(NamedTuple):
    """Named terms; the loss is the sum of sum / count over the terms."""

    # 0-d each, the number of the batch's targets; optionally also "tokens", the tokens that were read
    counts: Callable[[Batch], dict[str, torch.Tensor]]
    sums: Callable[[nn.Module, Batch], dict[str, torch.Tensor]]  # 0-d each, differentiable, in nats
    # 0-d each, without a gradient; `sums` finds the means over the global batch in its batch, by the same names
    baselines: Callable[[nn.Module, Batch], dict[str, torch.Tensor]] | None = None


def _count_targets(batch: Batch) -> dict[str, torch.Tensor]:
    return {"loss": (batch["shift_labels"] != -100).sum()}


def _sum_cross_entropy(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    # Call forward only: calling a submodule directly would leave DDP's gradients unaveraged. Use no cache: it would
    # join packed documents.
    return {"loss": model(**batch, num_items_in_batch=1, use_cache=False).loss}


causal_lm = Objective(counts=_count_targets, sums=_sum_cross_entropy)


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed cross-entropy of logits (B, C), and its divisor.

    Args:
        labels: (B,) class numbers; or (B, C) of 0 and 1, each a separate label (binary cross-entropy).
        weights: (C,) the weight of a row of each class; the divisor is then the sum of the rows' weights.
    """
    logits = logits.float()
    if labels.dim() == 2:
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum"), count_labels(labels)
    weights = None if weights is None else weights.to(logits.device)
    return F.cross_entropy(logits, labels, weight=weights, reduction="sum"), count_labels(labels, weights)


def count_labels(labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Return the number of labels, or the sum of their weights."""
    if weights is None:
        return torch.tensor(labels.numel())
    return weights.to(labels.device)[labels].sum()


def classification(weights: Sequence[float] | None = None) -> Objective:
    """Return the objective for the label of each row; `weights` of the classes as in `classification_loss`."""
    class_weights = None if weights is None else torch.tensor(weights)

    def counts(batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": count_labels(batch["labels"], class_weights), "tokens": batch["attention_mask"].sum()}

    def sums(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        return {"loss": classification_loss(logits, batch["labels"], class_weights)[0]}

    return Objective(counts, sums)


__all__ = ["Objective", "causal_lm", "classification", "classification_loss"]
