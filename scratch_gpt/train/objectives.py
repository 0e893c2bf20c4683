"""(model, batch) -> what is lost and how much was asked, as sums and counts.

An objective has two halves, because a sum may be divided only once, by the count over all micro-batches and processes
of a step: `counts` reads that off the batches before any forward pass, `sums` runs the model. So the gradient does not
depend on how a global batch was split. (What has to be known of the whole global batch before any row is scored, as
KTO's baseline has, is a third part: `baselines`.)
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .batches import Batch


class Objective(NamedTuple):
    """Named terms; the loss is the sum over terms of sum / count."""

    # 0-d each, how many targets the batch asks; beside the terms may stand "tokens", what was read for them
    counts: Callable[[Batch], dict[str, torch.Tensor]]
    sums: Callable[[nn.Module, Batch], dict[str, torch.Tensor]]  # 0-d each, differentiable, in nats
    # 0-d each, without a gradient; `sums` then finds the mean over the global batch in its batch, by the same name
    baselines: Callable[[nn.Module, Batch], dict[str, torch.Tensor]] | None = None


def _count_asked_tokens(batch: Batch) -> dict[str, torch.Tensor]:
    return {"loss": (batch["shift_labels"] != -100).sum()}


def _sum_cross_entropy(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    # Only through forward: a submodule called directly would leave DDP's gradients unaveraged. No cache: it would
    # join packed documents.
    return {"loss": model(**batch, num_items_in_batch=1, use_cache=False).loss}


causal_lm = Objective(counts=_count_asked_tokens, sums=_sum_cross_entropy)


def classification_loss(
    logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed cross-entropy of logits (B, C), and what it is divided by.

    Args:
        labels: (B,) class numbers; or (B, C) of 0 and 1, each a question of its own (binary cross-entropy).
        weights: (C,) what a row of each class counts; the count is then the sum of the rows' weights.
    """
    logits = logits.float()
    if labels.dim() == 2:
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="sum"), count_labels(labels)
    weights = None if weights is None else weights.to(logits.device)
    return F.cross_entropy(logits, labels, weight=weights, reduction="sum"), count_labels(labels, weights)


def count_labels(labels: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """How many labels are asked, or what they weigh."""
    if weights is None:
        return torch.tensor(labels.numel())
    return weights.to(labels.device)[labels].sum()


def classification(weights: Sequence[float] | None = None) -> Objective:
    """The label of each row at its last token; `weights` of the classes as in `classification_loss`."""
    class_weights = None if weights is None else torch.tensor(weights)

    def counts(batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": count_labels(batch["labels"], class_weights), "tokens": batch["attention_mask"].sum()}

    def sums(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        return {"loss": classification_loss(logits, batch["labels"], class_weights)[0]}

    return Objective(counts, sums)


__all__ = ["Objective", "causal_lm", "classification", "classification_loss"]
