"""Measure how fast this machine multiplies, moves memory and takes a training step of a given shape.

Rates are in FLOP/s and bytes/s. The caller passes the model and the loss to time.
"""

import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from .costs import Rehearsal
from .optimizers import clip_gradients, make_optimizer


# FLOP/s of dense matrix products in bf16 with sums in fp32, from NVIDIA's data sheets; the first name that matches.
GPU_PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
PRECISION_DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def seconds_of(work: Callable[[], object], device: torch.device, budget: float = 0.2) -> list[float]:
    """Return the seconds of repeated calls, at least two, until they take `budget` seconds; a first call warms up."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    work()
    wait()
    seconds: list[float] = []
    while len(seconds) < 2 or sum(seconds) < budget:
        start = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - start)
    return seconds


def matmul_rate(device: torch.device, precision: str, budget: float = 0.3) -> float:
    """Measure the FLOP/s of a large square matrix product in "no" (fp32), "bf16" or "fp16"; the best call counts."""
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.ones(n, n, dtype=PRECISION_DTYPES[precision], device=device) for _ in range(2))
    return 2 * n**3 / min(seconds_of(lambda: a @ b, device, budget))


def bandwidth(device: torch.device, budget: float = 0.2) -> float:
    """Measure the bytes/s that a copy reads and writes; it is much larger than any cache."""
    a = torch.zeros(2**26, device=device)
    b = torch.zeros_like(a)
    return 2 * a.nbytes / min(seconds_of(lambda: b.copy_(a), device, budget))


def known_peak(name: str, precision: str) -> float | None:
    """Return the FLOP/s in the data sheet of a GPU, or None if its name or the precision is not in the table."""
    if precision == "no":
        return None
    return next((peak for part, peak in GPU_PEAKS.items() if re.search(rf"\b{part}\b", name)), None)


def device_peak(device: torch.device, precision: str) -> float | None:
    """Return the peak FLOP/s of matrix products: measured for a CPU, from the table for a GPU, None if unknown."""
    if device.type == "cuda":
        return known_peak(torch.cuda.get_device_name(device), precision)
    return matmul_rate(device, precision) if device.type == "cpu" else None


def rehearse(
    model: Any,
    loss: Callable[[Any], torch.Tensor],
    rows: int,
    length: int,
    precision: str,
    optimizer: str = "adamw",
    budget: float = 0.5,
) -> Rehearsal:
    """Measure the time of a model's parts on rows of this shape.

    Args:
        model: has two blocks; its config sets how many are used.
        loss: returns the model's loss on such rows.
        optimizer: a name that `optimizers.make_optimizer` knows.
    """
    device = next(model.parameters()).device
    autocast = torch.autocast(device.type, PRECISION_DTYPES[precision], enabled=precision != "no")
    x = torch.ones(rows, length, model.config.hidden_size, device=device)

    def step(of: Callable[[], torch.Tensor]) -> float:
        def work() -> None:
            for parameter in model.parameters():
                parameter.grad = None
            with autocast:
                loss_value = of()
            loss_value.backward()

        return statistics.median(seconds_of(work, device, budget))

    def trunk() -> torch.Tensor:
        return model.base_model(inputs_embeds=x, use_cache=False).last_hidden_state.sum()

    two_blocks = step(trunk)
    model.config.num_hidden_layers = 1
    one_block, shallow = step(trunk), step(lambda: loss(model))
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]

    def update(name: str) -> float:
        moves = make_optimizer(model, learning_rate=1e-4, weight_decay=0.1, name=name)

        def work() -> None:
            clip_gradients(trained, moves, 1.0)
            moves.step()

        return statistics.median(seconds_of(work, device, budget / 4))

    plain = update("adamw")
    longer = max(0.0, update(optimizer) - plain) if optimizer != "adamw" else 0.0
    return Rehearsal(
        rows, length, shallow, max(0.0, two_blocks - one_block), plain / sum(p.numel() for p in trained), longer
    )


__all__ = ["bandwidth", "device_peak", "known_peak", "matmul_rate", "rehearse"]
