"""A model -> parameter groups and AdamW; a step number -> its learning rate."""

import math

import torch
from torch import nn


def adamw(
    model: nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) that decays matrices only, not biases and norms."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in trained)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)


def learning_rate_at(step: int, steps: int, peak: float, warmup_steps: int = 0, floor: float = 0.0) -> float:
    """The rate of step 0, 1, ... of `steps`: a straight line up to the peak, then a cosine down to the floor.

    Loshchilov & Hutter 2017, "SGDR", without restarts; the warm-up's first step is peak / warmup_steps, not 0.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


__all__ = ["adamw", "learning_rate_at"]
