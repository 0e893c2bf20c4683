"""Record each step of a run, evaluate, save checkpoints, and decide when training ends."""

import math
import shlex
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..utils import watchdog
from .batches import BatchLayout, Steps, StreamedSteps
from .checkpoint_writer import Checkpointer, RunStopped, last_good
from .metrics_log import Metrics
from .settings import Diverged, Progress, TrainingCallbacks, TrainingSettings
from .signals import StopSignals
from .step import StepResult


class Evaluator:
    """Evaluate a model, record the metrics and remember the best step."""

    def __init__(
        self,
        callbacks: TrainingCallbacks,
        settings: TrainingSettings,
        metrics: Metrics,
        print_line: Callable[[str], Any],
    ):
        self.callbacks, self.settings, self.metrics, self.print_line = callbacks, settings, metrics, print_line

    def is_due(self, progress: Progress, last_step: int) -> bool:
        """Return whether this step must be evaluated and has not been."""
        is_due = progress.step in (0, last_step) or is_multiple(progress.step, self.settings.eval_every)
        return self.callbacks.evaluate is not None and is_due and progress.evaluated_at != progress.step

    def is_finite(self, progress: Progress) -> bool:
        """Return False if this step was evaluated and its metric is not finite."""
        is_evaluated = progress.evaluated_at == progress.step
        return not is_evaluated or math.isfinite(progress.last_evaluation[self.settings.best_of])

    def evaluate(self, model: nn.Module, progress: Progress) -> bool:
        """Evaluate now; return whether patience has run out."""
        assert self.callbacks.evaluate is not None
        values = self.callbacks.evaluate(model)
        self.metrics.write(progress, values)
        progress.evaluated_at, progress.last_evaluation = progress.step, values
        value = values[self.settings.best_of]
        is_best = math.isfinite(value) and (progress.best_metric is None or value < progress.best_metric)
        if is_best:
            progress.best_metric, progress.best_step, progress.evaluations_since_best = value, progress.step, 0
        else:
            progress.evaluations_since_best += 1
        if self.callbacks.on_evaluation is not None:
            if text := self.callbacks.on_evaluation(model, progress, is_best, self.metrics.train_loss):
                self.print_line(text)
        patience = self.settings.patience
        return patience is not None and progress.evaluations_since_best >= patience


@dataclass
class Bookkeeper:
    """Update the progress, log, evaluate, save and stop after each step."""

    model: nn.Module
    progress: Progress
    settings: TrainingSettings
    steps: int
    source: Steps | StreamedSteps
    layout: BatchLayout
    metrics: Metrics
    evaluator: Evaluator
    checkpointer: Checkpointer
    signals: StopSignals
    bar: Any
    is_compiling: bool  # until the first step is done

    def read_flags(self) -> tuple[bool, bool]:
        """Return whether the time limit has passed and whether a stop signal has arrived, on this process."""
        limit = self.settings.max_seconds
        return limit is not None and self.metrics.seconds > limit, self.signals.received is not None

    def finish_step(self, result: StepResult, position: int, learning_rate: float, cursors: dict[str, Any]) -> bool:
        """Record a step, evaluate and save if due; return whether training ends.

        Raises:
            RunStopped: a stop signal has arrived, or files cannot be written.
            Diverged: too many steps in a row were skipped, or the weights are not finite at the end.
        """
        progress, settings = self.progress, self.settings
        progress.step, progress.position = progress.step + 1, position
        self._record(result)
        is_late, is_stopped = result.flags
        ends = is_late or progress.step == self.steps
        ends = ends or (settings.max_tokens is not None and progress.tokens >= settings.max_tokens)
        if ends or is_multiple(progress.step, settings.log_every):
            self._log(result, learning_rate)
        if not is_stopped and self.evaluator.is_due(progress, progress.step if ends else self.steps):
            with self.metrics.pause():
                ends = self.evaluator.evaluate(self.model, progress) or ends
        progress.stopped_early = ends and progress.step < self.steps
        if ends or is_stopped or is_multiple(progress.step, settings.checkpoint_every):
            self._save(ends, cursors)
        if is_stopped:
            self.checkpointer.finish()
            raise RunStopped(*_stop_message(self.signals.received, progress, self.checkpointer.output_dir))
        return ends

    def _record(self, result: StepResult) -> None:
        progress, rows = self.progress, self.source.describe
        watchdog.beat()
        self.bar.update()
        if self.is_compiling:
            self.evaluator.print_line(
                f"The first step took {self.metrics.seconds:.0f} s, including compilation and set-up."
            )
            self.is_compiling = False
        if result.is_finite:
            progress.tokens += result.tokens
            progress.skipped_in_a_row = 0
            if self.metrics.add_loss(result.loss):
                spike = {"loss_spike": result.loss, "loss_mean": self.metrics.mean}
                self.metrics.write(progress, {**spike, **rows(progress.step - 1)})
            return
        progress.skipped_steps += 1
        progress.skipped_in_a_row += 1
        skipped = {"skipped_steps": progress.skipped_steps, "grad_norm": result.grad_norm}
        self.metrics.write(progress, {**skipped, **rows(progress.step - 1)})
        self.evaluator.print_line(
            f"step {progress.step}: the loss or its gradient is not finite; the step is skipped."
        )
        if progress.skipped_in_a_row >= self.settings.max_bad_steps:
            self.checkpointer.finish()
            reason = f"{progress.skipped_in_a_row} steps in a row had a loss or gradient that is"
            raise Diverged(_divergence_message(reason, progress, self.checkpointer.output_dir))

    def _log(self, result: StepResult, learning_rate: float) -> None:
        rows = getattr(self.source, "rows", None)
        epoch = {} if rows is None else {"epoch": self.progress.position / len(rows)}  # a stream's length is unknown
        self.metrics.log(self.progress, self.bar, learning_rate=learning_rate, grad_norm=result.grad_norm, **epoch)

    def _save(self, ends: bool, cursors: dict[str, Any]) -> None:
        with self.metrics.checkpoint():
            is_saved = self.evaluator.is_finite(self.progress) and self.checkpointer.save_checkpoint(
                self.progress, self.layout, cursors
            )
        if ends and not is_saved:
            reason = "The weights or their evaluation are"
            raise Diverged(_divergence_message(reason, self.progress, self.checkpointer.output_dir))


def is_multiple(step: int, every: int | None) -> bool:
    """Return whether a step is a multiple of `every`; None has no multiples."""
    return bool(every) and step % every == 0


def _stop_message(received: signal.Signals | None, progress: Progress, output_dir: Path) -> tuple[str, int]:
    number = received or signal.SIGTERM  # another process received it
    name = "Ctrl-C" if number == signal.SIGINT else number.name
    return (
        f"Stopped by {name} after step {progress.step}. {last_good(output_dir)} Resume with the same command, or only "
        f"with output_dir={shlex.quote(str(output_dir))} resume='latest'",
        128 + number,
    )


def _divergence_message(reason: str, progress: Progress, output_dir: Path) -> str:
    return (
        f"{reason} not finite after step {progress.step}; metrics.jsonl names the rows of skipped steps. "
        f"{last_good(output_dir)} Resume from there with a lower learning_rate and allow_changed=True, or look at "
        "those rows."
    )


__all__ = ["Bookkeeper", "Evaluator", "is_multiple"]
