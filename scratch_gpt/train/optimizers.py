"""Make optimizers with their parameter groups, clip gradients and compute learning rates."""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn


ADAM_BETAS = (0.9, 0.95)


def make_optimizer(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float,
    name: str = "adamw",
    betas: tuple[float, float] = ADAM_BETAS,
) -> torch.optim.Optimizer:
    """Return an optimizer of the trained parameters: `adamw`, or `muon` for matrices with AdamW for the rest."""
    kinds = {"adamw": adamw, "muon": MuonWithAdamW}
    if name not in kinds:
        raise ValueError(f"Unknown optimizer {name!r}. Choose one of: {', '.join(kinds)}.")
    return kinds[name](model, learning_rate, weight_decay, betas)


def adamw(
    model: nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float] = ADAM_BETAS
) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov & Hutter 2019) that decays matrices only, not biases and norms."""
    return _adamw([p for p in model.parameters() if p.requires_grad], learning_rate, weight_decay, betas)


def _adamw(trained: list[nn.Parameter], learning_rate: float, weight_decay: float, betas) -> torch.optim.AdamW:
    groups = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in trained)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=fused)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024) for the blocks' matrices; AdamW for embeddings, head, biases and norms.

    Muon moves a matrix by its orthogonalized momentum. Its step is scaled to the size of AdamW's (Liu et al. 2025,
    "Muon is Scalable for LLM Training"), so that one learning rate fits both.

    This class holds the groups and the state of both, so that it is saved, resumed and scheduled like any optimizer.

    Raises:
        ValueError: no matrix of a block is trained.
    """

    def __init__(
        self, model: nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float] = ADAM_BETAS
    ):
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        matrices = [p for name, p in trained.items() if p.dim() == 2 and re.search(r"\.\d+\.", name)]
        if not matrices:
            raise ValueError("Muon trains the matrices of blocks, but all of them are frozen. Choose adamw.")
        matrix_ids = {id(p) for p in matrices}
        rest_parameters = [p for p in trained.values() if id(p) not in matrix_ids]
        options = {"lr": learning_rate, "weight_decay": weight_decay, "adjust_lr_fn": "match_rms_adamw"}
        self.parts: list[torch.optim.Optimizer] = [torch.optim.Muon(matrices, **options)]
        if rest_parameters:
            self.parts.append(_adamw(rest_parameters, learning_rate, weight_decay, betas))
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        ids = [id(p) for group in self.param_groups for p in group["params"]]
        assert sorted(ids) == sorted(map(id, trained.values())), "a parameter is in no optimizer, or in two"

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Take a step with both optimizers, each with its groups."""
        assert closure is None
        for part, groups in zip(self.parts, (self.param_groups[:1], self.param_groups[1:]), strict=False):
            part.param_groups, part.state = groups, self.state  # loading a state replaces both
            part.step()


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    otherwise: Callable[[list[nn.Parameter], float], Any] = nn.utils.clip_grad_norm_,
) -> Any:
    """Clip the gradients to `max_norm` for the next step of `optimizer`; return the norm before clipping.

    It gives the result of torch.nn.utils.clip_grad_norm_ on a CPU, with one pass over the gradients instead of three:
    the norm is computed by dot products, and fused AdamW divides the gradients when it reads them. For any other
    optimizer the gradients are divided here.

    `otherwise` is called instead if a gradient is not a plain fp32 tensor on a CPU.
    """
    parameters = [*parameters]
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not all(type(g) is torch.Tensor and g.dtype == torch.float32 and g.device.type == "cpu" for g in gradients):
        return otherwise(parameters, max_norm)
    flat = [gradient.reshape(-1) for gradient in gradients]
    norm = torch.stack([torch.dot(vector, vector) for vector in flat]).sum().sqrt().item() if flat else 0.0
    divisor = torch.tensor(norm / max_norm) if norm > max_norm else None
    if type(optimizer) is torch.optim.AdamW and all(group["fused"] for group in optimizer.param_groups):
        optimizer.grad_scale = divisor  # pyright: ignore[reportAttributeAccessIssue]
    elif divisor is not None:
        torch._foreach_div_(gradients, divisor)  # pyright: ignore[reportPrivateImportUsage]
    return norm


def learning_rate_at(
    step: int, steps: int, peak: float, warmup_steps: int = 0, floor: float = 0.0, shape: str = "cosine"
) -> float:
    """Return the learning rate of step 0, 1, ... of `steps`: linear warm-up to the peak, then decay to the floor.

    The decay is a cosine (Loshchilov & Hutter 2017, "SGDR", without restarts), or a straight line if `shape` is
    "linear". The rate of the first warm-up step is peak / warmup_steps, not 0.

    Example:
        >>> [round(learning_rate_at(step, steps=8, peak=1.0, warmup_steps=2), 2) for step in range(8)]
        [0.5, 1.0, 1.0, 0.93, 0.75, 0.5, 0.25, 0.07]
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, steps - warmup_steps))
    factor = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress}[shape]
    return floor + (peak - floor) * factor


__all__ = ["MuonWithAdamW", "adamw", "clip_gradients", "learning_rate_at", "make_optimizer"]
