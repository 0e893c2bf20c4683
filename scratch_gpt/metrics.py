"""Losses and clocks of a run -> `metrics.jsonl`, one JSON object a line, and the trackers.

Knows neither model nor data. Only the main process writes.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator


class Metrics:
    """What happened since the last line. `progress` has the `step` and the `tokens` that each line begins with."""

    def __init__(self, accelerator: Accelerator, path: Path, progress):
        self.accelerator, self.path = accelerator, path
        self.loss: torch.Tensor | float = 0.0
        self.last_step, self.last_tokens = progress.step, progress.tokens
        self.started = self.lap = time.perf_counter()
        if accelerator.is_main_process:  # lines behind the step that a run resumes from are lived through again
            kept = [line for line in read_metrics(path) if progress.step and line["step"] <= progress.step]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(json.dumps(line) + "\n" for line in kept))

    @property
    def seconds(self) -> float:
        """Since training started."""
        return time.perf_counter() - self.started

    def start_clock(self) -> None:
        """Begin to measure tokens per second."""
        self.lap = time.perf_counter()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leave what happens inside (an evaluation, a checkpoint) out of the tokens per second."""
        began = time.perf_counter()
        yield
        self.lap += time.perf_counter() - began

    def add_loss(self, loss: torch.Tensor) -> None:
        """This process' share of a step's mean loss; read only when a line is due, since reading waits for it."""
        self.loss = self.loss + loss.detach()

    def log(self, progress, bar, **values: Any) -> None:
        """Write the line of the steps since the last one."""
        loss = float(self.accelerator.reduce(torch.as_tensor(self.loss), "sum")) / (progress.step - self.last_step)
        tokens = progress.tokens - self.last_tokens
        speed = tokens / (time.perf_counter() - self.lap)
        line = {"loss": loss, **{name: float(value) for name, value in values.items()}, "tokens_per_second": speed}
        self.write(progress, line)
        bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
        self.loss, self.last_step, self.last_tokens = 0.0, progress.step, progress.tokens
        self.start_clock()

    def write(self, progress, values: dict[str, Any]) -> None:
        """One line, and the same to the trackers."""
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": progress.step, "tokens": progress.tokens, **values}) + "\n")
        numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        self.accelerator.log(numbers, step=progress.step)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last one that was cut off is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


__all__ = ["Metrics", "read_metrics"]
