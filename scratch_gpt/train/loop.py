"""Train a model: the only training loop, on Accelerate.

One step is one optimizer update over a global batch of batch_size x accumulation_steps x processes rows. Its rows
depend only on (seed, step) (batches.py). Neither the rows nor the gradient depend on how the global batch is split
(step.py). Everything else that a step depends on is in `Progress`, in the checkpoint, or a function of (seed, step,
process). So a run that was killed and resumed ends with the same weights.
"""

import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import tqdm
from torch import nn

from ..runs.folder import METRICS
from .batches import Augment, Batch, BatchLayout, Steps, StreamedSteps, derive_seed
from .bookkeeping import Bookkeeper, Evaluator
from .checkpoint_writer import Checkpointer, RunStopped, guard_saves
from .checkpoints import list_checkpoints, load_checkpoint, prune, take_fields
from .fit_batch import fit_memory
from .metrics_log import Metrics
from .objectives import Objective
from .settings import Diverged, Progress, TrainingCallbacks, TrainingSettings, planned_steps
from .signals import StopSignals
from .step import train_step


def train_model(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    learning_rate: Callable[[int], float],
    rows: Any,
    collate: Callable[[list[Any]], Batch],
    objective: Objective,
    settings: TrainingSettings,
    steps: int,
    output_dir: Path,
    callbacks: TrainingCallbacks | None = None,
    resume_from: Path | None = None,
    has_best: bool = True,
    record: dict[str, Any] | None = None,
) -> tuple[nn.Module, Progress]:
    """Train for `steps` steps; return the prepared model and the progress. Write metrics.jsonl and checkpoints/.

    Args:
        learning_rate: returns the rate of a step; steps are counted from 0.
        rows: indexable and sized, or a stream with lanes (data/rows/streams.py).
        collate: makes a batch of a list of rows.
        has_best: False if the weights of the checkpoint's best step are lost; then only later evaluations count.
        record: facts about this run, as JSON; saved in its checkpoints.

    Raises:
        RunStopped: a stop signal has arrived (the current step is finished and saved), too many steps in a row were
            skipped, or nothing could be saved.
    """
    callbacks = callbacks or TrainingCallbacks()
    save = callbacks.save or guard_saves(accelerator, output_dir)
    model_files = callbacks.model_files() if callbacks.model_files and accelerator.is_main_process else None
    model, optimizer = accelerator.prepare(model, optimizer)
    progress, state, text = _restore(accelerator, model, optimizer, resume_from, has_best)
    file, peak = output_dir / METRICS, settings.peak_tokens_per_second
    metrics = Metrics(accelerator, file, progress, text, state.get("metrics"), save, peak)
    bar = _open_bar(progress, steps)
    evaluator = Evaluator(callbacks, settings, metrics, bar.write if accelerator.is_main_process else _print_nothing)
    checkpointer = Checkpointer(
        accelerator, model, optimizer, metrics, output_dir, settings, record or {}, save, model_files
    )
    with StopSignals() as signals, bar:
        # Evaluate even if a stop signal has already arrived.
        ends = evaluator.is_due(progress, steps) and evaluator.evaluate(model, progress)
        layout = _fit_layout(accelerator, model, optimizer, rows, collate, objective, settings, progress.step < steps)
        source, cursors = _open_source(
            rows, collate, layout, settings, progress, state.get("cursors", {}), callbacks.augment
        )
        if resume_from is not None and (ends or progress.step >= steps):
            _keep_resumed(resume_from, state["progress"], progress, layout, cursors, checkpointer)
        batches = source.loader(progress.step if ends else steps, settings.workers, accelerator.device.type == "cuda")
        model.train()
        is_compiling = getattr(accelerator.unwrap_model(model), "_compiled_call_impl", None) is not None
        bookkeeper = Bookkeeper(
            model,
            progress,
            settings,
            steps,
            source,
            layout,
            metrics,
            evaluator,
            checkpointer,
            signals,
            bar,
            is_compiling,
        )
        metrics.start_clock()
        for micro_batches, position, cursors in metrics.waiting(batches):
            rate = learning_rate(progress.step)
            for group in optimizer.param_groups:
                group["lr"] = rate
            torch.manual_seed(derive_seed(settings.seed, progress.step, accelerator.process_index))  # dropout
            result = train_step(
                accelerator,
                model,
                optimizer,
                objective,
                micro_batches,
                settings.max_grad_norm,
                bookkeeper.read_flags,
            )
            if bookkeeper.finish_step(result, position, rate, cursors):
                break
        checkpointer.finish()
    return model, progress


def _restore(
    accelerator: Accelerator, model: nn.Module, optimizer: Any, resume_from: Path | None, has_best: bool
) -> tuple[Progress, dict[str, Any], str]:
    # Return the progress, the checkpoint's state and the text of its metrics; empty for a new run.
    if resume_from is None:
        return Progress(), {}, ""
    state, text = load_checkpoint(resume_from, accelerator.unwrap_model(model), optimizer.optimizer)
    progress = take_fields(Progress, state["progress"])
    if not has_best:
        progress.best_metric, progress.best_step, progress.evaluations_since_best = None, None, 0
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    return progress, state, text


def _open_bar(progress: Progress, steps: int) -> Any:
    interval = 0.5 if sys.stderr.isatty() else 20  # seconds between updates: a log file keeps every one
    return tqdm(
        initial=progress.step,
        total=steps,
        desc="Training",
        unit="step",
        dynamic_ncols=True,
        mininterval=interval,
        disable=os.environ.get("TQDM_DISABLE", "") not in ("", "0"),  # Accelerate's tqdm does not read it
    )


def _print_nothing(text: str) -> None:
    pass


def _fit_layout(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: Any,
    rows: Any,
    collate: Callable[[list[Any]], Batch],
    objective: Objective,
    settings: TrainingSettings,
    has_steps: bool,
) -> BatchLayout:
    # Decide how a global batch is split; a micro-batch that does not fit in memory is made smaller.
    split = settings.batch_size, settings.accumulation_steps
    if has_steps:
        split = fit_memory(accelerator, model, optimizer, rows, collate, objective, *split)
    return BatchLayout(*split, accelerator.num_processes, accelerator.process_index)


def _open_source(
    rows: Any,
    collate: Callable[[list[Any]], Batch],
    layout: BatchLayout,
    settings: TrainingSettings,
    progress: Progress,
    cursors: dict[str, Any],
    augment: Augment | None,
) -> tuple[Steps | StreamedSteps, dict[str, Any]]:
    # Return the steps of this process after the progress, and the cursors of its lanes of a stream.
    start = (progress.step, progress.position)
    if hasattr(rows, "lanes"):
        source = StreamedSteps(rows, collate, layout, start, cursors, augment)
        return source, source.cursors
    end = None if settings.epochs is None else math.ceil(settings.epochs * len(rows))
    lengths = rows.lengths if settings.group_by_length else None
    return Steps(rows, collate, layout, settings.seed, end, start, lengths, augment), {}


def _keep_resumed(
    resume_from: Path,
    saved_progress: dict[str, Any],
    progress: Progress,
    layout: BatchLayout,
    cursors: dict[str, Any],
    checkpointer: Checkpointer,
) -> None:
    # The resumed run has no step left. Do not write an intact checkpoint with the same progress again.
    is_kept = resume_from in list_checkpoints(checkpointer.folder) and asdict(progress) == saved_progress
    if not is_kept:
        checkpointer.save_checkpoint(progress, layout, cursors)
    elif checkpointer.accelerator.is_main_process:
        prune(checkpointer.folder, resume_from, checkpointer.settings.keep, progress.best_step)


__all__ = [
    "Diverged",
    "Progress",
    "RunStopped",
    "TrainingCallbacks",
    "TrainingSettings",
    "guard_saves",
    "planned_steps",
    "train_model",
]
