"""Write the losses and times of a run to `metrics.jsonl`, one JSON object per line, and to the trackers.

Only the main process writes. A checkpoint saves `state()`, which later lines depend on: the losses since the last
line, and the running statistics that detect a spike.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator

from ..runs.folder import METRICS, read_metrics
from ..utils.files import write_text
from .checkpoints import CheckpointError


BatchT = TypeVar("BatchT")
METRICS_STATE = ("losses", "steps", "seen", "mean", "variance")  # attributes of `Metrics` that a checkpoint saves


class Metrics:
    """Collect losses and times, and write them as lines; each begins with `step` and `tokens` of the progress.

    Args:
        text: the file's content at the start; a resumed run passes that of its checkpoint.
        save: `save(name, write)` calls `write()` and handles its errors; a line that could not be written is written
            with the next one.
        peak_tokens_per_second: upper bound of all devices; each line then has the share of it that was reached as
            `mfu`, the model FLOPs utilization (Chowdhery et al. 2022, "PaLM", appendix B).
    """

    def __init__(
        self,
        accelerator: Accelerator,
        path: Path,
        progress,
        text: str = "",
        state: dict[str, Any] | None = None,
        save: Callable[[str, Callable[[], Any]], Any] = lambda name, write: write(),
        peak_tokens_per_second: float | None = None,
    ):
        self.accelerator, self.path, self.save = accelerator, path, save
        self.losses = 0.0  # sum since the last line
        self.steps = 0
        self.seen, self.mean, self.variance = 0, 0.0, 0.0  # running statistics of the losses
        for name, value in (state or {}).items():
            if name not in METRICS_STATE or isinstance(value, bool) or not isinstance(value, (int, float)):
                raise CheckpointError(
                    f"The checkpoint's metrics have {name} = {str(value)[:40]!r}, which is not a valid field."
                )
            setattr(self, name, value)
        self.recent_loss: float | None = None  # mean of the last line's steps
        self.last_tokens = progress.tokens  # of the last line, or of the progress at this launch
        self.unwritten = ""
        self.checkpoint_seconds, self.waited = 0.0, 0.0  # since the last line
        self.peak = peak_tokens_per_second
        self.started = self.lap = time.perf_counter()
        if accelerator.is_main_process:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)

    def state(self) -> dict[str, Any]:
        """Return the values that later lines depend on, as JSON."""
        return {name: getattr(self, name) for name in METRICS_STATE}

    def text(self) -> str:
        """Return all lines so far."""
        return (self.path.read_text(encoding="utf-8") if self.path.exists() else "") + self.unwritten

    # --- Clocks ---

    @property
    def seconds(self) -> float:
        """Return the seconds since training started."""
        return time.perf_counter() - self.started

    @property
    def lap_seconds(self) -> float:
        """Return the seconds since the last line, without pauses."""
        return time.perf_counter() - self.lap

    def start_clock(self) -> None:
        """Begin to measure tokens per second."""
        self.lap = time.perf_counter()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the body (an evaluation, a checkpoint) from the tokens per second."""
        began = time.perf_counter()
        yield
        self.lap += time.perf_counter() - began

    @contextmanager
    def checkpoint(self) -> Iterator[None]:
        """Do the same as `pause`, and record the seconds for the next line."""
        began = time.perf_counter()
        with self.pause():
            yield
        self.checkpoint_seconds += time.perf_counter() - began

    def waiting(self, ahead: Iterable[BatchT]) -> Iterator[BatchT]:
        """Yield the items, and record the time spent waiting for them for the next line's `data_wait`."""
        items = iter(ahead)
        while True:
            began = time.perf_counter()
            try:
                item = next(items)
            except StopIteration:
                return
            self.waited += time.perf_counter() - began
            yield item

    # --- Losses ---

    def add_loss(self, loss: float) -> bool:
        """Add a step's mean loss; return whether it is a spike.

        A spike lies more than six standard deviations above the running mean, after the first fifty steps. Mean and
        deviation decay by a factor of 0.98 per step.
        """
        self.losses, self.steps = self.losses + loss, self.steps + 1
        deviation = loss - self.mean
        spread = max(math.sqrt(self.variance), 1e-3 * abs(self.mean))
        is_spike = self.seen >= 50 and deviation > 6 * spread
        self.seen += 1
        weight = max(0.02, 1 / self.seen)
        self.mean += weight * deviation
        self.variance = (1 - weight) * (self.variance + weight * deviation**2)
        return is_spike

    @property
    def train_loss(self) -> float | None:
        """Return the mean loss of the steps since the last line, or of that line's steps; None before any step."""
        return self.losses / self.steps if self.steps else self.recent_loss

    def log(self, progress, bar, **values: Any) -> None:
        """Write a line about the steps since the last one; its loss is the mean over the steps not skipped."""
        loss = self.recent_loss = self.losses / self.steps if self.steps else math.nan
        seconds = self.lap_seconds
        speed = (progress.tokens - self.last_tokens) / seconds
        line = {"loss": loss, **{name: float(value) for name, value in values.items()}, "tokens_per_second": speed}
        if self.peak is not None:
            line["mfu"] = speed / self.peak
        line["data_wait"], self.waited = self.waited / seconds, 0.0  # share of the time
        if self.checkpoint_seconds:
            line["checkpoint_seconds"], self.checkpoint_seconds = self.checkpoint_seconds, 0.0
        self.write(progress, line)
        bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s", refresh=False)
        self.losses, self.steps, self.last_tokens = 0.0, 0, progress.tokens
        self.start_clock()

    def write(self, progress, values: dict[str, Any]) -> None:
        """Write one line, and its numbers to the trackers. Numbers that are not finite become null in JSON."""
        values = {name: None if _is_not_finite(value) else value for name, value in values.items()}
        self.unwritten += json.dumps({"step": progress.step, "tokens": progress.tokens, **values}) + "\n"
        self.save(METRICS, self._flush)
        numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        self.accelerator.log(numbers, step=progress.step)

    def _flush(self) -> None:
        # Write complete lines in one call, so that a kill cannot cut one. A line cut by a full disk is removed.
        if not self.accelerator.is_main_process:
            self.unwritten = ""
            return
        content = self.unwritten.encode()
        with self.path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            count = 0
            try:
                count = file.write(content)
            finally:
                if count != len(content):
                    file.truncate(end)
        if count != len(content):
            raise OSError("the disk is full")
        self.unwritten = ""


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


__all__ = ["Metrics", "read_metrics"]
