"""Find a micro-batch size that fits in memory, without changing the gradient."""

import gc
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn

from .accelerator import sum_over_processes
from .batches import Batch, sample_rows, to_device


def fit_memory(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rows: Any,
    collate: Callable[[list], Batch],
    objective: Any,
    batch_size: int,
    accumulation_steps: int,
) -> tuple[int, int]:
    """Try one micro-batch; while it does not fit, split it and accumulate more (the gradient is unchanged).

    Call it before the first step, on every process, so that all decide together. It reserves memory for the
    optimizer's state.

    Returns:
        The batch_size and accumulation_steps that fit.

    Raises:
        MemoryError: a single row does not fit.
    """
    while True:
        full = collate(sample_rows(rows, batch_size))
        fits = int(_fits(accelerator, model, optimizer, objective, full))
        optimizer.zero_grad()
        fitting = int(sum_over_processes(accelerator, torch.tensor(fits, device=accelerator.device)))
        if fitting == accelerator.num_processes:
            return batch_size, accumulation_steps
        gc.collect()
        if accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        if batch_size == 1:
            raise MemoryError(
                "Out of memory with a single row. Pass gradient_checkpointing=True, a smaller max_length or "
                "mixed_precision='bf16', or choose a smaller model."
            )
        factor = next(n for n in range(2, batch_size + 1) if batch_size % n == 0)
        accelerator.print(
            f"Out of memory at batch_size {batch_size}: continuing with batch_size {batch_size // factor} and "
            f"accumulation_steps {accumulation_steps * factor}, which gives the same gradient."
        )
        batch_size, accumulation_steps = batch_size // factor, accumulation_steps * factor


def _fits(accelerator, model, optimizer, objective, batch: Batch) -> bool:
    """Return whether forward, backward and the optimizer's state fit in memory; all of it is freed on return."""
    try:
        stateless = [p for p in model.parameters() if p.requires_grad and not optimizer.state.get(p)]
        _state = [torch.empty_like(parameter) for parameter in stateless for _ in range(2)]
        with accelerator.no_sync(model):
            batch = to_device(batch, accelerator.device)
            with torch.no_grad():
                batch |= objective.baselines(model, batch) if objective.baselines else {}
            sums = objective.sums(model, batch)
            accelerator.backward(sum(sums.values()) * 0.0)
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        return False
    return True


__all__ = ["fit_memory"]
