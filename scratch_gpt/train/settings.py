"""Define the settings of a training run, its progress and its callbacks."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from .batches import Augment, BatchLayout
from .checkpoint_writer import RunStopped


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a run of any task. The first limit that is reached ends the run; None for no limit."""

    batch_size: int  # rows per process and micro-batch
    accumulation_steps: int = 1
    max_steps: int | None = None
    epochs: float | None = None
    max_tokens: int | None = None  # targets, or the tokens that the objective counts
    max_seconds: float | None = None  # of this launch
    max_grad_norm: float | None = 1.0
    max_bad_steps: int = 5  # skipped steps in a row before the run stops
    eval_every: int | None = None  # steps; the first and the last step are always evaluated
    patience: int | None = None  # evaluations without a new best before the run ends
    best_of: str = "eval_loss"
    checkpoint_every: int | None = None  # steps; the last step is always kept
    keep: int = 2
    async_save: bool = False
    log_every: int = 10
    group_by_length: bool = False  # a step takes rows of similar length (rows.lengths)
    workers: int = 0
    seed: int = 0
    peak_tokens_per_second: float | None = None  # upper bound of all devices; `mfu` is the share of it


@dataclass
class Progress:
    """State of a run that a resumed run needs besides weights and optimizer."""

    step: int = 0
    position: int = 0  # rows taken from the endless sequence of shuffled epochs
    tokens: int = 0  # targets learned from, or the tokens that the objective counts
    skipped_steps: int = 0  # steps whose loss or gradient was not finite
    skipped_in_a_row: int = 0
    evaluated_at: int | None = None  # the step of the last evaluation
    best_metric: float | None = None
    best_step: int | None = None
    evaluations_since_best: int = 0
    last_evaluation: dict[str, Any] = field(default_factory=dict)
    stopped_early: bool = False


@dataclass(frozen=True)
class TrainingCallbacks:
    """Functions that the loop calls, all on every process except `model_files`."""

    # model -> {"eval_loss": ..., ...}; before the first step, every `eval_every` steps and after the last one
    evaluate: Callable[[nn.Module], dict[str, Any]] | None = None
    # model, progress, whether it is the best so far, recent training loss -> a text to print; after each evaluation
    on_evaluation: Callable[[nn.Module, Progress, bool, float | None], str] | None = None
    augment: Augment | None = None  # (row, position in the run's sequence) -> the row to learn from
    save: Callable[[str, Callable[[], Any]], bool] | None = None  # name, write; by default `guard_saves`
    model_files: Callable[[], dict[str, bytes]] | None = None  # files that each checkpoint holds next to the weights


class Diverged(RunStopped):
    """Raised when a run's loss, gradients or weights are no longer finite."""


def planned_steps(settings: TrainingSettings, rows: int | None, processes: int, tokens_per_row: float) -> int:
    """Return the number of optimizer steps until the first limit (other than time) is reached.

    `rows` is None for a stream, whose length is unknown.

    Raises:
        ValueError: the settings have no limit.
    """
    global_batch = BatchLayout(settings.batch_size, settings.accumulation_steps, processes).global_batch
    limits = []
    if settings.max_steps is not None:
        limits.append(settings.max_steps)
    if settings.epochs is not None and rows is not None:
        limits.append(math.ceil(settings.epochs * rows / global_batch))
    if settings.max_tokens is not None:
        limits.append(math.ceil(settings.max_tokens / (tokens_per_row * global_batch)))
    if not limits:
        epochs = "max_steps, epochs=" if rows is not None else "max_steps"
        raise ValueError(f"No training length given: set {epochs} or max_tokens.")
    return min(limits)


__all__ = ["Diverged", "Progress", "TrainingCallbacks", "TrainingSettings", "planned_steps"]
