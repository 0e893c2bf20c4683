"""Take one optimizer step: count targets, forward, backward, clip, update.

It trains any objective (objectives.py), also outside of `train_model`, and needs objects prepared by Accelerate and a
list of micro-batches. Each sum is divided once, by its count over all micro-batches and processes, so the gradient
does not depend on how the global batch was split.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple, cast

import torch
from accelerate import Accelerator
from torch import nn

from .accelerator import sum_over_processes
from .batches import Batch, to_device
from .checkpoint_writer import all_reduce_flags
from .objectives import Objective
from .optimizers import clip_gradients


MicroBatches = Sequence[tuple[Batch, bool]]  # (batch, whether it counts)


class StepResult(NamedTuple):
    """Measurements of one step, the same on every process except `grad_norm`."""

    loss: float  # mean over the step's targets
    grad_norm: float  # before clipping
    tokens: int  # targets, or the tokens that the objective counts
    is_finite: bool  # False if the step was skipped
    flags: tuple[bool, ...]  # those of `read_flags`, True if any process raised them


def train_step(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    objective: Objective,
    micro_batches: MicroBatches,
    max_grad_norm: float | None = None,
    read_flags: Callable[[], Sequence[bool]] = tuple,
) -> StepResult:
    """Update a prepared model once on all `micro_batches`, and reset its gradients.

    The step is skipped on all processes if its loss or gradient is not finite.

    Args:
        read_flags: called after the backward pass; its flags are reduced together with the loss.
    """
    counts = count_targets(accelerator, objective, micro_batches)
    baselines = compute_baselines(accelerator, model, objective, micro_batches, counts)
    local_loss = torch.zeros((), device=accelerator.device)  # this process' share of the mean
    for n, (batch, is_counted) in enumerate(micro_batches, start=1):
        with nullcontext() if n == len(micro_batches) else accelerator.no_sync(model):
            sums = objective.sums(model, to_device(batch, accelerator.device) | baselines)
            part = cast(torch.Tensor, sum(sums[name] * is_counted / counts[name] for name in sums))
            # DDP averages over processes, and Accelerate's backward divides by its gradient_accumulation_steps.
            accelerator.backward(part * accelerator.num_processes * accelerator.gradient_accumulation_steps)
        local_loss += part.detach()
    grad_norm = _clip(accelerator, model, optimizer, max_grad_norm or math.inf)
    loss, *flags = all_reduce_flags(accelerator, local_loss, *read_flags())
    # Under fp16 the scaler itself skips gradients that are not finite.
    is_finite = math.isfinite(loss) and (math.isfinite(grad_norm) or accelerator.scaler is not None)
    if is_finite:
        optimizer.step()
    optimizer.zero_grad()
    return StepResult(loss, grad_norm, int(counts.get("tokens", counts["loss"])), is_finite, tuple(flags))


def count_targets(accelerator: Accelerator, objective: Objective, micro_batches: MicroBatches) -> dict[str, float]:
    """Count the step's targets over all micro-batches and processes; 1 instead of 0, a fraction if weighted."""
    counts: dict[str, float] = {}
    for batch, is_counted in micro_batches:
        for name, count in objective.counts(batch).items():
            counts[name] = counts.get(name, 0) + count.item() * is_counted
    if accelerator.num_processes > 1:
        totals = torch.tensor([*counts.values()], device=accelerator.device)
        counts = dict(zip(counts, sum_over_processes(accelerator, totals).tolist(), strict=True))
    return {name: count or 1 for name, count in counts.items()}


@torch.no_grad()
def compute_baselines(
    accelerator: Accelerator,
    model: nn.Module,
    objective: Objective,
    micro_batches: MicroBatches,
    counts: dict[str, float],
) -> dict[str, torch.Tensor]:
    """Return the objective's baselines: 0-d means over all micro-batches and processes."""
    if objective.baselines is None:
        return {}
    totals: dict[str, torch.Tensor] = {}
    for batch, is_counted in micro_batches:
        for name, total in objective.baselines(model, to_device(batch, accelerator.device)).items():
            totals[name] = totals.get(name, 0) + total * is_counted
    return {name: sum_over_processes(accelerator, total) / counts[name] for name, total in totals.items()}


def _clip(accelerator: Accelerator, model: nn.Module, optimizer: Any, max_norm: float) -> float:
    plain = getattr(optimizer, "optimizer", optimizer)  # unwrap Accelerate's wrapper
    norm = clip_gradients(model.parameters(), plain, max_norm, otherwise=accelerator.clip_grad_norm_)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # with FSDP the norm is sharded


__all__ = ["MicroBatches", "StepResult", "compute_baselines", "count_targets", "train_step"]
