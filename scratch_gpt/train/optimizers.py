"""A model -> parameter groups and their optimizer; gradients -> clipped; a step number -> its learning rate."""

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
    """The optimizer of this name for what is trained: `adamw` of everything, or `muon` with AdamW for the rest."""
    kinds = {"adamw": adamw, "muon": MuonWithAdamW}
    if name not in kinds:
        raise ValueError(f"There is no optimizer {name!r}; it is one of {', '.join(kinds)}.")
    return kinds[name](model, learning_rate, weight_decay, betas)


def adamw(
    model: nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float] = ADAM_BETAS
) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) that decays matrices only, not biases and norms."""
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

    Muon moves a matrix by its momentum made orthogonal. Its step is scaled to the size of one of AdamW's (Liu et al.
    2025, "Muon is Scalable for LLM Training"), so that one learning rate serves both.

    Groups and state of both lie here, so that it is saved, resumed and scheduled like any other optimizer.

    Raises:
        ValueError: there is no matrix in a block that is trained.
    """

    def __init__(
        self, model: nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float] = ADAM_BETAS
    ):
        trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        matrices = [p for name, p in trained.items() if p.dim() == 2 and re.search(r"\.\d+\.", name)]
        if not matrices:
            raise ValueError("Muon moves the matrices of blocks, and none is trained here: give adamw.")
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
        """Both take a step, each with its groups."""
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
    """The norm of all gradients as one vector; `optimizer` takes them, until the next call, as if at most `max_norm`.

    torch.nn.utils.clip_grad_norm_ on a CPU in one pass over the gradients, where it takes three: the norm by dot
    products, and fused AdamW divides them as it reads them. Any other optimizer finds them divided.

    Where a gradient is no fp32 tensor of this process' own on a CPU, it is left to `otherwise`.
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
    """The rate of step 0, 1, ... of `steps`: a straight line up to the peak, then down to the floor.

    Down goes a cosine (Loshchilov & Hutter 2017, "SGDR", without restarts) or, by `shape` "linear", another straight
    line. The warm-up's first step is peak / warmup_steps, not 0.

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
