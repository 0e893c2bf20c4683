"""(model, batch) -> what is lost and how much was asked, as sums and counts.

An objective has two halves, because a sum may be divided only once, by the count over all micro-batches and processes
of a step: `counts` reads that off the batches before any forward pass, `sums` runs the model. So the gradient does not
depend on how a global batch was split.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import nn


Batch = Mapping[str, torch.Tensor]


class Objective(NamedTuple):
    """Named terms; the loss is the sum over terms of sum / count."""

    counts: Callable[[Batch], dict[str, torch.Tensor]]  # 0-d each, how many targets the batch asks
    sums: Callable[[nn.Module, Batch], dict[str, torch.Tensor]]  # 0-d each, differentiable, in nats


def _count_asked_tokens(batch: Batch) -> dict[str, torch.Tensor]:
    return {"loss": (batch["shift_labels"] != -100).sum()}


def _sum_cross_entropy(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    # Only through forward: a submodule called directly would leave DDP's gradients unaveraged. No cache: it would
    # join packed documents.
    return {"loss": model(**batch, num_items_in_batch=1, use_cache=False).loss}


causal_lm = Objective(counts=_count_asked_tokens, sums=_sum_cross_entropy)

__all__ = ["Batch", "Objective", "causal_lm"]
